"""Hiding: errors of reading a file say its case's pseudonym where they would say its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rfss_core.errors import CaseError
from rfss_core.imaging.case import CaseSource
from rfss_core.imaging.names import stem
from rfss_core.imaging.volume import image_files

_SHORTEST = 3
"""Shorter words say nothing, and are part of many that do not come from a name."""
_COMMON = frozenset(
    {"anat", "case", "data", "dcm", "dicom", "frame", "gt", "img", "image", "images", "jpeg", "jpg", "label", "labels"}
    | {"mask", "nii", "png", "scan", "seg", "series", "slice", "slices", "sub", "tif", "tiff", "volume"}
)
"""Words of file names that messages need; whatever else is left of a name makes the message a general one."""
_SENTENCES = {
    "duplicate_label": "has several labels; keep one",
    "duplicate_name": "another file has the same name with another extension; rename or remove one",
    "label_without_image": "this label has no image of the same name; add the image, or rename or remove the label",
    "unsafe_path": "its path leaves the folder or cannot be carried into manifests; copy or rename the file",
    "unsupported_label": "DICOM label maps are not read; convert it to NIfTI on its series' grid",
}
_GENERAL = "cannot be used; check or export the file again"


def sentence(reason: str) -> str:
    """Return what a reason of quarantine means, without any name."""
    return _SENTENCES.get(reason, _GENERAL)


@contextmanager
def hiding(source: CaseSource) -> Iterator[None]:
    """Let errors pass that name the source by its pseudonym alone; does nothing for a source with plain names."""
    try:
        yield
    except Exception as error:
        if not source.hidden:
            raise
        raise _without_names(error, source) from None


def hide_names(text: str, source: CaseSource, reason: str = "") -> str:
    """Return a message in which the case's pseudonym stands for its files' names, its own and its patient's.

    A message that still holds a word of theirs becomes a general one.
    """
    if not source.hidden:
        return text
    files = image_files(source)
    shown = (*files, source.label) if source.label is not None else files
    # A series has hundreds of files, of which a message names one or two.
    names = {name for path in shown if path.name in text for name in (str(path), path.name, stem(path.name))}
    secrets = names | {part for name in source.hidden for part in (name, *name.split("/"))}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", source.case_id, text)
    rest = text.replace(source.case_id, "").casefold()
    return f"{source.case_id}: {sentence(reason)}" if any(word in rest for word in _words(secrets)) else text


def _words(names: set[str]) -> set[str]:
    found = {word for name in names for word in re.findall(r"[^\W_]+", name.casefold()) if "/" not in name}
    return {word for word in found if len(word) >= _SHORTEST and word not in _COMMON}


def _without_names(error: Exception, source: CaseSource) -> Exception:
    if isinstance(error, CaseError):
        return type(error)(hide_names(str(error), source, error.reason), reason=error.reason)
    error.args = tuple(hide_names(part, source) if isinstance(part, str) else part for part in error.args)
    error.__cause__ = error.__context__ = None
    if hasattr(error, "__notes__"):
        del error.__notes__
    if isinstance(error, OSError):
        error.filename = error.filename2 = None
    # Errors that build their text from something else than their arguments.
    text = str(error)
    return error if hide_names(text, source) == text else RuntimeError(f"{source.case_id}: {type(error).__name__}")

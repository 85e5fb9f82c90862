"""Names: case ids, patients, and which image and label names belong together."""

from __future__ import annotations

import hashlib
import re
import unicodedata

EXTENSIONS = (".nii.gz", ".nii", ".png", ".tiff", ".tif", ".jpeg", ".jpg", ".dcm")
_LABEL_SUFFIX = re.compile(r"(.+)_(?:gt|seg|label|mask|dseg)", re.IGNORECASE | re.DOTALL)
_IMAGE_SUFFIX = re.compile(r"(.+)_(?:img|image)", re.IGNORECASE | re.DOTALL)
_CHANNEL = re.compile(r"(.+)_\d{4}", re.DOTALL)
"""nnU-Net's ``CASE_0000``: the channel of a multi-sequence case."""
_PATIENTS = (re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+"), re.compile(r"patient\d+"))
_LONGEST_SLUG = 100


def stem(name: str) -> str:
    """Return a relative path without its image extension (``.nii.gz`` is one)."""
    lower = name.lower()
    for extension in EXTENSIONS:
        if lower.endswith(extension) and len(name.rsplit("/", 1)[-1]) > len(extension):
            return name[: -len(extension)]
    return name


def case_id(name: str) -> str:
    """Return the id of a case: its name where that is safe, else a slug of it and eight digits of its sha256.

    Args:
        name: the case's name, any Unicode.

    Returns:
        1 to 109 ASCII letters, digits, ``.``, ``_`` and ``-``, beginning with a letter, digit or ``_``.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_name)
    slug = re.sub(r"\.{2,}", ".", slug).strip(".-")[:_LONGEST_SLUG].rstrip(".-")
    if slug == name:
        return slug
    return f"{slug or 'case'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def find_patient(name: str, pattern: str | None) -> str:
    """Return the patient that a case's name tells.

    Args:
        name: relative path without extension.
        pattern: regular expression, tried on the file's name, then on the whole path; its first group counts, else
            its whole match. None: BIDS ``sub-<id>``, else ``patient<digits>``.

    Returns:
        What matched, else the whole name.
    """
    patterns = _PATIENTS if pattern is None else (re.compile(pattern),)
    for expression in patterns:
        for text in (name.rsplit("/", 1)[-1], name):
            found = expression.search(text)
            if found:
                chosen = found.group(1) if expression.groups else found.group()
                if chosen:
                    return chosen
    return name


def pairing_key(name: str) -> str:
    """Return a name in the form in which names are compared (Unicode NFC: macOS stores NFD)."""
    return unicodedata.normalize("NFC", name)


def label_base(name: str) -> str | None:
    """Return a label's name without ``_gt``, ``_seg``, ``_label``, ``_mask`` or ``_dseg``; None without one."""
    found = _LABEL_SUFFIX.fullmatch(name)
    return found.group(1) if found else None


def image_bases(name: str) -> list[str]:
    """Return the names, besides its own, under which an image's label may be found."""
    return [found.group(1) for expression in (_CHANNEL, _IMAGE_SUFFIX) if (found := expression.fullmatch(name))]


def channel_base(name: str) -> str:
    """Return a name without nnU-Net's channel number."""
    found = _CHANNEL.fullmatch(name)
    return found.group(1) if found else name


def unsafe_name(name: str) -> str | None:
    """Return why a file's name cannot be carried into manifests and outputs, or None if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "holds control characters"
    return None

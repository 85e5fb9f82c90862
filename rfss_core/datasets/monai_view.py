"""A data set as MONAI sees it: a datalist of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfss_core.datasets.pseudo_label_case import PseudoLabelCase
from rfss_core.datasets.pseudo_label_set import PseudoLabelSet
from rfss_core.errors import InputError
from rfss_core.imaging import write_image, write_label
from rfss_core.quality.decision import Decision
from rfss_core.store.files import Files


def datalist(
    dataset: PseudoLabelSet, decisions: Sequence[Decision], out: Path | None, ignore: float | None
) -> list[dict[str, Any]]:
    """Return one dictionary a case; see :meth:`PseudoLabelSet.monai_datalist`."""
    return [
        {
            "image": _image(case, out),
            "label": _label(case, out, ignore),
            "case": case.id,
            "patient": case.patient,
            "weight": case.weight,
            "predicted_dice": case.predicted_dice,
            "decision": case.decision,
        }
        for case in dataset.cases(decisions)
    ]


def _image(case: PseudoLabelCase, out: Path | None) -> str | list[str]:
    source = case.source
    if source is not None:
        return [str(path) for path in source.image] if isinstance(source.image, tuple) else str(source.image)
    path = _place(case, out, "images", "its image lies in the workspace alone")
    write_image(case.raw(), case.grid, path)
    return str(path)


def _label(case: PseudoLabelCase, out: Path | None, ignore: float | None) -> str:
    here = Files(case.origin.manifest.folder).local_path(case.entry.label_path)
    if here is not None and ignore is None:
        case.label_bytes()
        return str(here)
    why = "its label lies in an object store" if ignore is None else "its label is to be written with ignored voxels"
    path = _place(case, out, "labels", why)
    write_label(case.label(ignore), case.grid, path)
    return str(path)


def _place(case: PseudoLabelCase, out: Path | None, kind: str, why: str) -> Path:
    if out is None:
        raise InputError(
            f"case '{case.name}' cannot be named as a file: {why}; give out=, a folder to write it to, or (for images) "
            "load with images= naming the folder of the source images"
        )
    # A manifest from elsewhere may hold any name: none leads out of the folder.
    place = Files(out).local_path(f"{kind}/{case.name}{case.grid.suffix}")
    assert place is not None
    return place

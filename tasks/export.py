"""Export of a workspace's data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rfss_core.datasets import DatasetEntry, export_nifti, read_dataset
from rfss_core.datasets.export import LabelEdit
from rfss_core.datasets.ignore import IGNORE, ignore_value
from rfss_core.datasets.origin import LATEST, PUBLISH_STAGE, UNCERTAINTY
from rfss_core.errors import InputError, InputNotFoundError
from rfss_core.store import Workspace
from tasks.label_files import encoded
from tasks.segment import STAGE as SEGMENT_STAGE

FORMATS = ("nifti",)


def export_dataset(workspace: str | Path, form: str, out: Path, ignore: float | None = None) -> int:
    """Copy the workspace's latest data set to a folder.

    Args:
        workspace: workspace of a finished run.
        form: one of :data:`FORMATS`.
        out: folder to write.
        ignore: voxels of at least this uncertainty, above 0 to 1, become a class of their own named ``ignore``.

    Returns:
        Number of cases.

    Raises:
        InputError: unknown format, a level out of bounds, no uncertainty is stored, or the folder is taken.
        InputNotFoundError: no data set has been published there.
    """
    if form not in FORMATS:
        raise InputError(f"'{form}' is not a format of this version; use one of: {', '.join(FORMATS)}")
    store = Workspace.open(workspace, create=False)
    if not store.files.exists(LATEST):
        raise InputNotFoundError(f"workspace '{workspace}' holds no data set yet; run `rfss label` first")
    folder = store.files.read_bytes(LATEST).decode().strip()
    edit = None if ignore is None else _ignoring(store, folder, ignore)
    return len(export_nifti(f"{store.url}/{folder}", out, edit=edit).entries)


def _ignoring(workspace: Workspace, folder: str, level: float) -> LabelEdit:
    """Return the edit that writes uncertain voxels as :data:`IGNORE`."""
    if not 0 < level <= 1:
        raise InputError(f"--ignore must lie above 0 and be at most 1, got {level:g}; 0.5 ignores about the boundary")
    manifest = read_dataset(f"{workspace.url}/{folder}")
    if "masks" not in manifest.meta:
        raise InputError("this data set was published before uncertainty was stored; run `rfss label` again")
    masks = workspace.stage(SEGMENT_STAGE, manifest.meta["masks"])
    published = workspace.stage(PUBLISH_STAGE, folder.rsplit("/", 1)[-1])
    chunk_of = {case: chunk for chunk in published.records() for case in published.read_table(chunk, "files")["case"]}
    value = ignore_value(manifest.classes)

    def encode(entry: DatasetEntry) -> bytes:
        chunk = chunk_of[entry.case]
        labels = np.asarray(masks.read_array(chunk, f"{entry.case}/labels"), dtype=np.uint8)
        uncertainty = np.asarray(masks.read_array(chunk, f"{entry.case}/{UNCERTAINTY}"))
        labels[uncertainty >= np.ceil(255 * level)] = value
        return encoded(labels, workspace.case(entry.case).grid)

    return LabelEdit(encode, {value: IGNORE})

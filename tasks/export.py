"""Export of a workspace's data set."""

from __future__ import annotations

from pathlib import Path

from rfss_core.datasets import export_nifti
from rfss_core.errors import InputError, InputNotFoundError
from rfss_core.store import Workspace

FORMATS = ("nifti",)


def export_dataset(workspace: str | Path, form: str, out: Path) -> int:
    """Copy the workspace's latest data set to a folder.

    Args:
        workspace: workspace of a finished run.
        form: one of :data:`FORMATS`.
        out: folder to write.

    Returns:
        Number of cases.

    Raises:
        InputError: unknown format, or the folder is taken.
        InputNotFoundError: no data set has been published there.
    """
    if form not in FORMATS:
        raise InputError(f"'{form}' is not a format of this version; use one of: {', '.join(FORMATS)}")
    store = Workspace.open(workspace, create=False)
    if not store.files.exists(LATEST):
        raise InputNotFoundError(f"workspace '{workspace}' holds no data set yet; run `rfss label` first")
    folder = store.files.read_bytes(LATEST).decode().strip()
    return len(export_nifti(f"{store.url}/{folder}", out).entries)


LATEST = "datasets/latest"
"""File that names the folder of the latest data set, below the workspace."""

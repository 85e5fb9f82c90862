"""``rfss export``: a data set for others' tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    workspace: Annotated[str, typer.Argument(help="Workspace of a finished run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must be new or empty.")],
    format: Annotated[str, typer.Option("--format", help="nifti")] = "nifti",  # noqa: A002 - the option's name
    ignore: Annotated[
        float | None,
        typer.Option("--ignore", help="Voxels of at least this uncertainty (above 0 to 1) become class `ignore`."),
    ] = None,
) -> None:
    """Copy a labelled data set out of the workspace."""
    from tasks.export import export_dataset

    count = export_dataset(workspace, format, out, ignore)
    Console().print(f"{count} cases exported to {out}", highlight=False)

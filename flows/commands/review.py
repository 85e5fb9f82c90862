"""``rfss review``: pseudo-labels out to a reviewer, corrected label maps back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def review_export(
    workspace: Annotated[str, typer.Argument(help="Workspace of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must be new or empty.")],
    n: Annotated[int, typer.Option("--n", help="Cases, from the head of the review queue.", min=1)] = 10,
    accepted: Annotated[bool, typer.Option("--accepted", help="Offer accepted pseudo-labels too.")] = False,
) -> None:
    """Write the pseudo-labels whose correction should help most, for ITK-SNAP, 3D Slicer or a drawing program."""
    from flows.console import show_review_cases
    from tasks.review import export_review

    show_review_cases(Console(), export_review(workspace, out, n, accepted), out, workspace)


def review_import(
    folder: Annotated[Path, typer.Argument(help="Folder that `rfss review export` wrote.", show_default=False)],
    workspace: Annotated[str, typer.Option("--workspace", help="The workspace that it was exported from.")],
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="Who reviewed, where the worklist does not say. Default: you.")
    ] = None,
) -> None:
    """Take corrected label maps back; they join the support set of the next `rfss label`."""
    from flows.console import show_review_import
    from tasks.review import import_review

    result = import_review(folder, workspace, reviewer)
    show_review_import(Console(), result)
    result.raise_refused()

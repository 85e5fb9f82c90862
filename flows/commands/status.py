"""``rfss status``: how far a run is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def status(workspace: Annotated[str, typer.Argument(help="Workspace of a run.")]) -> None:
    """Show how far a run is: stages, chunks done, cases set aside; also while it is going on."""
    from flows.console import show_status
    from tasks.status import read_status

    show_status(Console(), read_status(workspace))

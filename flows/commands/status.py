"""``rfss status``: how far a run is."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console


def status(
    workspace: Annotated[str, typer.Argument(help="Workspace of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", help="Show it again every so often while it runs.", min=0.1),
    ] = None,
) -> None:
    """Show how far a run is: stages, chunks done and failed, rate, time left, cases set aside; also while it runs."""
    from flows.console import show_status
    from tasks.status import read_status

    console, notes = Console(), Console(stderr=True)
    while True:
        found = read_status(workspace, waiting=lambda note: notes.print(note, highlight=False))
        if as_json:
            typer.echo(found.model_dump_json())
        else:
            show_status(console, found)
        if watch is None or found.state != "running":
            return
        time.sleep(watch)

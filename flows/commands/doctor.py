"""``rfss doctor``: is the installation sound."""

from __future__ import annotations

import typer
from rich.console import Console

from flows.exit_codes import FAILED


def doctor() -> None:
    """Check the installation: versions, models, devices, executors."""
    from flows.doctor import examine

    if not examine(Console()):
        raise typer.Exit(FAILED)

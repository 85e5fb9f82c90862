"""``rfss automations``: what happens by itself around runs, set up on a Prefect server."""

from __future__ import annotations

from typing import Annotated

import typer


def automations(
    webhook: Annotated[
        str | None,
        typer.Option(
            envvar="RFSS_WEBHOOK",
            help="URL that is told of failed gates, drift and crashed runs; it is saved as a block.",
        ),
    ] = None,
) -> None:
    """Set up what happens by itself: a promoted data set trains the student, alerts, zombie runs (PREFECT_API_URL)."""
    from rich.console import Console

    from flows.service.automations import set_up

    console = Console(highlight=False, soft_wrap=True)
    for line in set_up(webhook):
        console.print(line)

"""Prefect's handlers that write to the terminal."""

from __future__ import annotations

import logging


def hush_consoles() -> None:
    """Keep Prefect's own lines out of the terminal; its UI has them."""
    from prefect.logging.handlers import PrefectConsoleHandler

    for name in ["", *logging.root.manager.loggerDict]:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL + 1)

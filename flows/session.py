"""One command's session in the terminal: console, log file, quiet libraries."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.console import Console

from rfss_core.errors import ExecutionError
from rfss_core.events import Listener
from rfss_core.store import Workspace

if TYPE_CHECKING:
    from tasks.summary import Summary

LOG = "run.log"

log = logging.getLogger("rfss")

# The command line watches a flow that Prefect calls; a flow's parameters must be JSON, so the watcher travels beside.
terminal_listener: ContextVar[Listener | None] = ContextVar("terminal_listener", default=None)


def recorded(workspace: str, error: Exception) -> Summary:
    """Return what a run recorded that could not tell a Prefect server, gone in the middle, how it ended.

    Args:
        workspace: of the run.
        error: what Prefect's client said at the end.

    Raises:
        ExecutionError: the run had not ended; it can be resumed.
    """
    from tasks.status import read_status
    from tasks.summary import read_summary

    if read_status(workspace).state != "finished":
        raise ExecutionError(
            f"the Prefect server went away ({error}); finished work is kept: start the server, or unset "
            "PREFECT_API_URL, and start the same command again"
        ) from error
    log.warning("the Prefect server went away (%s) and does not know that this run ended; all is recorded", error)
    return read_summary(workspace)


@contextmanager
def command_session(workspace: str, verbose: bool) -> Iterator[Console]:
    """Show bars in the terminal, write ``run.log`` into the workspace, and keep Prefect's own console lines out.

    Args:
        workspace: folder or URL of a workspace that exists; an object store gets no log file.
        verbose: also log every chunk.
    """
    from prefect.logging.handlers import PrefectConsoleHandler

    from flows.server import ensure_prefect_server
    from tasks.progress import TerminalProgress, log_event

    console = Console()
    logger = logging.getLogger("rfss")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    handlers: list[logging.Handler] = []
    log_file = Workspace.open(workspace).files.local_path(LOG)
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logging.getLogger("py.warnings").addHandler(handler)
    # Prefect prints a traceback for a gate that failed; the command prints one line instead.
    for name in list(logging.root.manager.loggerDict):
        for existing in logging.getLogger(name).handlers:
            if isinstance(existing, PrefectConsoleHandler):
                existing.setLevel(logging.CRITICAL + 1)
    # A server that goes away is one line of ours; its client's background services would say it on and on, to the
    # end of the process. Prefect's internal loggers ask a setting instead of their level, their handler does not.
    for handler in logging.getLogger("prefect._internal").handlers:
        handler.setLevel(logging.CRITICAL + 1)
    logging.getLogger("prefect.events.clients").setLevel(logging.CRITICAL + 1)
    logging.getLogger("EventsWorker").setLevel(logging.CRITICAL + 1)
    logging.raiseExceptions = False
    # Other libraries' notes to their developers belong into the log, not before a user's eyes.
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").propagate = False
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for library in ("mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    ensure_prefect_server()
    with warnings.catch_warnings(), TerminalProgress(console) as bars:
        warnings.simplefilter("default")

        def listen(event: object) -> None:
            bars(event)  # type: ignore[arg-type]
            log_event(event)  # type: ignore[arg-type]

        token = terminal_listener.set(listen)
        try:
            yield console
        finally:
            terminal_listener.reset(token)
            logging.captureWarnings(capture=False)
            for handler in handlers:
                logger.removeHandler(handler)
                logging.getLogger("py.warnings").removeHandler(handler)
                handler.close()

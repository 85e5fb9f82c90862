"""One command's session in the terminal: console, log file, quiet libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import httpx
from rich.console import Console

from rfss_core.errors import ExecutionError
from rfss_core.events import Event, Listener
from rfss_core.store import Workspace

LOG = "run.log"

log = logging.getLogger("rfss")

# The command line watches a flow that Prefect calls; a flow's parameters must be JSON, so the watcher travels beside.
terminal_listener: ContextVar[Listener | None] = ContextVar("terminal_listener", default=None)


def gone(error: Exception) -> ExecutionError:
    """Return what a command says whose Prefect server went away before its flow had ended.

    Args:
        error: what Prefect's client said.
    """
    return ExecutionError(
        f"the Prefect server went away ({error}); finished work is kept: start the server, or unset PREFECT_API_URL, "
        "and start the same command again"
    )


@contextmanager
def command_session(workspace: str, verbose: bool) -> Iterator[Console]:
    """Show bars in the terminal, write ``run.log`` into the workspace, and keep Prefect's own console lines out.

    With JSON logs standard error gets their lines instead of the bars, and so does what the console prints.

    Args:
        workspace: folder or URL of a workspace that exists; an object store gets no log file.
        verbose: also log every chunk.

    Raises:
        ExecutionError: the Prefect server went away before the flow had ended.
    """
    from flows.farewell import short_farewell
    from flows.server import ensure_prefect_server
    from tasks.logs import current_log_settings, hush_consoles, log_settings, open_logs
    from tasks.progress import TerminalProgress, log_event

    settings = current_log_settings()
    if verbose:
        settings = settings.model_copy(update={"level": "debug"})
    json = settings.format == "json"
    console = LoggedConsole() if json else Console()
    log_file = Workspace.open(workspace).files.local_path(LOG)
    # Prefect prints a traceback for a gate that failed; the command prints one line instead.
    hush_consoles()
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
    for library in ("mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with ExitStack() as stack:
        stack.callback(logging.captureWarnings, capture=False)
        stack.enter_context(open_logs(settings, *([log_file] if log_file is not None else [])))
        stack.callback(log_settings.reset, log_settings.set(settings))
        ensure_prefect_server()
        stack.enter_context(short_farewell())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        # In JSON the log is all that the terminal gets.
        listeners: list[Listener] = [log_event]
        if not json:
            listeners.insert(0, stack.enter_context(TerminalProgress(console)))

        def listen(event: Event) -> None:
            for listener in listeners:
                listener(event)

        stack.callback(terminal_listener.reset, terminal_listener.set(listen))
        try:
            yield console
        except httpx.TransportError as error:
            raise gone(error) from error


class LoggedConsole(Console):
    """A console whose every print is a JSON line: what a command says at its end, where the log is JSON."""

    def __init__(self) -> None:
        super().__init__(force_terminal=False, no_color=True, width=120)

    def print(self, *objects: Any, **options: Any) -> None:
        """Write what would be printed, tables and all, as one message to standard error."""
        from tasks.logs import say

        with self.capture() as said:
            super().print(*objects, **options)
        if text := said.get().strip():
            say(text, event="said")


def in_session() -> bool:
    """Return whether a terminal session has opened the log."""
    return terminal_listener.get() is not None

"""A run as a context: executor, events, and a state that says how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flows.session import terminal_listener
from rfss_core.errors import StoreError
from rfss_core.events import EventStream
from rfss_core.settings import LabelSettings
from rfss_core.store import Workspace
from tasks.execution import open_executor
from tasks.progress import PrefectProgress, log_event
from tasks.run import Run
from tasks.status import RunState


@contextmanager
def open_run(settings: LabelSettings) -> Iterator[Run]:
    """Open the workspace and the executor that the settings name, and keep ``state.json`` up to date until the end.

    Args:
        settings: everything that the run depends on.
    """
    events = EventStream([terminal_listener.get() or log_event, PrefectProgress()])
    workspace = Workspace.open(settings.workspace)
    with open_executor(settings.execution) as executor:
        run = Run(settings, workspace, executor, events)
        state = RunState.begin(run)
        events.subscribe(state)
        try:
            yield run
        except BaseException as error:
            # A full disk must not hide behind its own consequence.
            with suppress(StoreError):
                state.end("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        state.end("finished")

"""A run as a context: lease, executor, events, and a state that says how it ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.exceptions import TerminationSignal

from flows.session import terminal_listener
from flows.store_block import resolved
from flows.watching import Watched, process_log, watching
from rfss_core.errors import StoreError, WorkspaceLostError
from rfss_core.events import EventStream
from rfss_core.settings import LabelSettings
from rfss_core.store import Workspace
from rfss_core.store.lease import Ended, take
from tasks.execution import open_executor
from tasks.progress import PrefectProgress, log_event
from tasks.publish import default_name
from tasks.run import Run
from tasks.status import RunState
from tasks.verify import verify

log = logging.getLogger("rfss")


@contextmanager
def open_run(settings: LabelSettings) -> Iterator[Run]:
    """Take the workspace, open the executor that the settings name, and keep ``state.json`` up to date until the end.

    Args:
        settings: everything that the run depends on.

    Raises:
        WorkspaceBusyError: another run holds the workspace.
        WorkspaceLostError: another run took the workspace, because this one gave no sign of life for too long.
    """
    with resolved(settings) as settings:
        yield from _run(settings)


def _run(settings: LabelSettings) -> Iterator[Run]:
    workspace = Workspace.open(settings.workspace)
    with (
        process_log(),
        take(workspace.files, settings.execution.lease_s, waiting=log.warning) as lease,
        open_executor(settings.execution) as executor,
    ):
        # First of all listeners: whoever lost the workspace says so and does nothing else.
        events = EventStream([lambda _: lease.check(), terminal_listener.get() or log_event, PrefectProgress()])
        run = Run(settings, workspace, executor, events)
        with watching(_watched(run), settings.observability) as watch:
            events.subscribe(watch)
            state = RunState.begin(run)
            events.subscribe(state)
            events.emit(watch.started(settings.preset, settings.execution.executor))
            try:
                if settings.execution.verify:
                    verify(run)
                yield run
                lease.check()
            except WorkspaceLostError:
                # state.json is the other run's now.
                watch(watch.ended("failed"))
                raise
            except BaseException as error:
                how: Ended = "stopped" if isinstance(error, (KeyboardInterrupt, TerminationSignal)) else "failed"
                # A full disk, or a lease that is lost, must not hide what ended the run.
                with suppress(StoreError):
                    events.emit(watch.ended(how))
                with suppress(StoreError):
                    state.end(how)
                raise
            events.emit(watch.ended("finished"))
            state.end("finished")


def _watched(run: Run) -> Watched:
    settings = run.settings
    dataset = settings.dataset or default_name(settings.images)
    sources = (settings.images, settings.labels)
    return Watched(run.id, dataset, run.workspace.url, sources, lambda: run.executor.load)

"""What watches a flow besides the terminal and Prefect: its log's context, and its metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from prefect.context import FlowRunContext

from flows.session import in_session
from rfss_core import __version__
from rfss_core.events import Event, RunEnded, RunStarted
from rfss_core.settings import ObservabilitySettings
from rfss_core.store.lease import Ended
from tasks.executor import Load
from tasks.exporter import exported, file_name
from tasks.log_context import LogContext, run_context, source_folders
from tasks.logs import current_log_settings, open_logs
from tasks.metrics import RunMetrics


@dataclass(frozen=True)
class Watched:
    """A run that is watched."""

    run: str
    """Its id."""
    dataset: str
    workspace: str
    """Its folder or URL: tells the metrics of two workspaces apart."""
    sources: Sequence[str | None] = ()
    """Folders or globs of images and labels, whose paths the log does not name."""
    load: Callable[[], Load] | None = None
    """What the executor does."""


class Watch:
    """Listener to a run's events, and maker of those about the run itself.

    Args:
        watched: the run.
        flow: name of its flow.
    """

    def __init__(self, watched: Watched, flow: str) -> None:
        self.metrics = RunMetrics(watched.run, watched.load)
        self._watched, self._flow = watched, flow
        self._began = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        self.metrics(event)

    def started(self, preset: str, executor: str) -> RunStarted:
        """Return the event of the run's begin."""
        return RunStarted(self._flow, self._watched.dataset, preset, executor, __version__)

    def ended(self, state: Ended) -> RunEnded:
        """Return the event of its end."""
        return RunEnded(state, time.perf_counter() - self._began)


@contextmanager
def process_log() -> Iterator[None]:
    """Write the log as the environment says, where no terminal session has opened it: in a served run.

    Raises:
        SettingsError: a variable of the environment that cannot be.
        InputError: a log file cannot be written.
    """
    if in_session():
        yield
    else:
        with open_logs(current_log_settings()):
            yield


@contextmanager
def watching(watched: Watched, settings: ObservabilitySettings) -> Iterator[Watch]:
    """Give the log its context and the metrics their place until the end of the block.

    Raises:
        SettingsError: a variable of the environment that cannot be.
    """
    settings = settings.completed()
    flow, flow_run = _flow()
    watch = Watch(watched, flow)
    context = LogContext(sources=source_folders(*watched.sources), settings=current_log_settings())
    with ExitStack() as stack:
        stack.enter_context(run_context(context.with_fields(run=watched.run, flow_run=flow_run)))
        file = file_name(flow, watched.dataset, watched.workspace)
        stack.enter_context(exported(watch.metrics.registry, settings, file))
        yield watch


def _flow() -> tuple[str, str | None]:
    """Return name and run id of the flow that runs."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return "none", None
    return context.flow.name, str(context.flow_run.id)

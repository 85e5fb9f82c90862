"""Executors: this process, and whichever the settings name (docs/execution.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rfss_core.settings import ExecutionSettings
from tasks.executor import Executor, Item, Load, Noted, Result
from tasks.overlap import WIDTH, overlapped
from tasks.retry import Retry, RetryPolicy
from tasks.threads import configure_threads, threads_for
from tasks.worker import Failure, Work, run_item


class InlineExecutor:
    """This process: a few items at once, whose phases take turns (:mod:`tasks.phases`)."""

    name = "inline"
    dashboard: str | None = None
    workers = 1

    def __init__(self, settings: ExecutionSettings) -> None:
        self._cores = settings.threads or available_cores()
        self._policy = RetryPolicy.of(settings)
        self._in_flight = 0

    @property
    def load(self) -> Load:
        """See :class:`Executor`."""
        return Load(1, self._in_flight)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        stage: str = "",
        alone: int | None = None,
        noted: Noted[Item] | None = None,
    ) -> Iterator[tuple[Item, Result | Failure]]:
        """See :class:`Executor`; results come in the items' order."""
        work = Work(function, stage, self._cores, self._policy)
        threads = threads_for(stage, self._cores)
        # The libraries are imported here, where nothing but the user interrupts it.
        configure_threads(threads)

        def call(item: Item) -> tuple[Result | Failure, tuple[Retry, ...]]:
            configure_threads(threads)
            ran = run_item(work, item)
            return ran.value, ran.retries

        def handed_out() -> Iterator[Item]:
            for item in items:
                self._in_flight += 1
                yield item

        try:
            for item, (value, retries) in overlapped(call, handed_out(), 1 if alone else WIDTH):
                self._in_flight -= 1
                for retry in retries if noted else ():
                    noted(item, retry)  # type: ignore[misc]
                yield item, value
        finally:
            self._in_flight = 0
        # The driver's own thread works too, between stages.
        configure_threads(threads)


@contextmanager
def open_executor(settings: ExecutionSettings) -> Iterator[Executor]:
    """Open the executor that the settings name, and close it at the end.

    Raises:
        ExecutionError: no scheduler answers, no worker comes, or the cluster does not start.
        NoDeviceError: executor ``gpus`` on a machine without a GPU.
        SettingsError: the cluster's class cannot be imported, or is none.
    """
    if settings.executor == "inline":
        yield InlineExecutor(settings)
        return
    from tasks.clusters import open_client
    from tasks.flight import DaskExecutor

    with open_client(settings, available_cores()) as place:
        yield DaskExecutor(place.client, place.name, place.cores, place.wait_s, settings)


def available_cores() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0))

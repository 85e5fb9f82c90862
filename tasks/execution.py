"""Executors: run one plain function over many items, with bounded flight (docs/architecture.md, "tasks and flows").

Dask workers run plain functions and never Prefect tasks; the driver submits a few items a worker and one more for each
that ends, so neither the scheduler nor the driver ever holds more than that many.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import cloudpickle
import dask
from dask.distributed import Client, KilledWorker, LocalCluster, as_completed

from rfss_core.errors import ExecutionError, RfssError
from rfss_core.settings import ExecutionSettings
from tasks.threads import configure_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT_PER_WORKER = 3
WORKERS_TIMEOUT_S = 60


@dataclass(frozen=True)
class Failure:
    """An item whose function raised something that is no result."""

    error: BaseException
    """What was raised; on Dask, what the worker raised or ``KilledWorker``."""


class Executor(Protocol):
    """Runs a picklable function over items and yields results as they end."""

    name: str
    dashboard: str | None
    workers: int

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Failure]]:
        """Yield each item with its result, or with the :class:`Failure` that took its place, in order of completion."""
        ...


class InlineExecutor:
    """This process, one item after the other."""

    name = "inline"
    dashboard: str | None = None
    workers = 1

    def __init__(self, settings: ExecutionSettings) -> None:
        self._threads = settings.threads or available_cores()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Failure]]:
        """See :class:`Executor`."""
        configure_threads(self._threads)
        for item in items:
            try:
                yield item, function(item)
            except Exception as error:  # noqa: BLE001 - one item's failure is reported, the others go on
                yield item, Failure(error)


class DaskExecutor:
    """Workers of a Dask scheduler: processes on this machine or a cluster elsewhere."""

    def __init__(self, client: Client, name: str, threads: int) -> None:
        self._client = client
        self._threads = threads
        self.name = name
        self.dashboard: str | None = client.dashboard_link or None
        self.workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Failure]]:
        """See :class:`Executor`."""
        deadly: list[Item] = []
        for item, outcome in self._in_flight(function, items, self.workers * IN_FLIGHT_PER_WORKER):
            if isinstance(outcome, Failure) and isinstance(outcome.error, KilledWorker):
                deadly.append(item)
            else:
                yield item, outcome
        # Whatever shared a dying worker is blamed with it. Alone, only the culprit dies again.
        for item in deadly:
            yield from self._in_flight(function, [item], 1)

    def _in_flight(
        self, function: Callable[[Item], Result], items: Sequence[Item], bound: int
    ) -> Iterator[tuple[Item, Result | Failure]]:
        waiting = iter(items)
        running: dict[Any, Item] = {}
        pending = as_completed(raise_errors=False)

        def submit_one() -> None:
            for item in waiting:
                # pure=False: the records decide what may be skipped, not Dask's idea of equal arguments.
                payload = cloudpickle.dumps((function, item))
                future = self._client.submit(run_payload, payload, self._threads, pure=False)
                running[future.key] = item
                pending.add(future)
                return

        for _ in range(bound):
            submit_one()
        for future in pending:
            item = running.pop(future.key)
            submit_one()
            if future.status == "finished":
                yield item, future.result()
            else:
                error = future.exception()
                yield item, Failure(error or ExecutionError(f"the work on {item} was {future.status}"))


def run_payload(payload: bytes, threads: int) -> Any:
    """Unpickle a function and its item, and call it; runs in a worker.

    Dask unpickles a task's arguments in the worker's connection to the scheduler: what cannot be imported there would
    close the connection and lose the worker, without a word to the driver. In here it is the item's own failure.
    """
    configure_threads(threads)
    function, item = pickle.loads(payload)  # noqa: S301 - made by this very run's driver
    return function(item)


@contextmanager
def open_executor(settings: ExecutionSettings) -> Iterator[Executor]:
    """Open the executor that the settings name, and close it at the end.

    Raises:
        ExecutionError: the scheduler's address does not answer.
    """
    if settings.executor == "inline":
        yield InlineExecutor(settings)
        return
    if settings.executor == "local":
        workers = settings.workers or available_cores()
        threads = settings.threads or max(1, available_cores() // workers)
        with (
            # A worker that an item kills is started again by its nanny; twice is proof enough.
            dask.config.set({"distributed.scheduler.allowed-failures": 1}),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield DaskExecutor(client, f"local, {workers} workers", threads)
        return
    try:
        client = Client(settings.executor, timeout="15s")
    except (OSError, TimeoutError) as error:
        raise ExecutionError(
            f"no Dask scheduler answers at '{settings.executor}'; start one (`dask scheduler`) or use --executor local"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
        except TimeoutError as error:
            raise ExecutionError(
                f"the Dask scheduler at '{settings.executor}' has no worker after {WORKERS_TIMEOUT_S} s; start one "
                f"(`dask worker {settings.executor}`)"
            ) from error
        yield DaskExecutor(client, settings.executor, settings.threads or 1)


def available_cores() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0))


def describe(error: BaseException) -> str:
    """Return one line for an error: our own message as it stands, others with their type."""
    if isinstance(error, RfssError):
        return str(error)
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

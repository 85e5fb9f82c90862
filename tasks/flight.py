"""Dask executor: bounded flight over workers that come, go and die, and who is to blame when one dies.

The scheduler holds a few chunks a worker and gets one more for each that ends, so neither it nor the driver ever holds
the whole run. A dead worker is blamed on nobody at first: what it held goes back into the queue. What was there at a
second death waits until all else is done and runs alone; only what ends a worker that it has for itself is a failure.
"""

from __future__ import annotations

import math
import queue
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle
from dask.distributed import Client, Future, KilledWorker
from dask.typing import Key

from rfss_core.errors import ExecutionError, WorkerDiedError
from rfss_core.settings import ExecutionSettings
from tasks.executor import Item, Load, Noted, Result
from tasks.retry import Retry, RetryPolicy
from tasks.worker import Failure, Ran, Work, WorkPlugin, run_batch

IN_FLIGHT_PER_WORKER = 3
DEATHS_IN_COMPANY = 2
"""Deaths after which an item is run alone."""
LOST_ATTEMPTS = 3
"""Times that the scheduler may lose an item before that is its failure."""
BATCH_S = 0.25
"""Work of one Dask task, where items are shorter than that."""
BATCH_ITEMS = 64
COUNT_EVERY_S = 1.0
AGAIN_S = 0.2
"""Between two tries to tell all workers, of which one died."""


class DaskExecutor:
    """Workers of a Dask scheduler: processes on this machine or a cluster elsewhere.

    Args:
        client: connected; its cluster may grow and shrink.
        name: for reports.
        cores: of each worker; None: as many as it has threads.
        wait_s: seconds to wait for another worker when all are gone.
        settings: attempts and deaths.
    """

    def __init__(
        self, client: Client, name: str, cores: int | None, wait_s: float, settings: ExecutionSettings
    ) -> None:
        self.name = name
        self.dashboard: str | None = client.dashboard_link or None
        self.client = client
        self.wait_s = wait_s
        self._cores = cores
        self._settings = settings
        self._workers = 0
        self._counted = -math.inf
        self._seen = time.monotonic()
        self.in_flight = 0
        """Items that were handed to the scheduler and have not come back."""

    @property
    def load(self) -> Load:
        """See :class:`tasks.executor.Executor`."""
        return Load(self._workers, self.in_flight)

    @property
    def workers(self) -> int:
        """Worker processes, counted once a second at most; at least 1, so that an adaptive cluster gets work.

        Raises:
            ExecutionError: the scheduler is gone, or all workers have been for too long.
        """
        now = time.monotonic()
        if now - self._counted >= COUNT_EVERY_S:
            try:
                self._workers = len(self.client.nthreads())
            except (OSError, TimeoutError) as error:
                raise self._lost() from error
            self._counted = now
            if self._workers:
                self._seen = now
            elif now - self._seen > self.wait_s:
                raise ExecutionError(
                    f"{self.name} has had no worker for {self.wait_s:.0f} s; check its machines and start the same "
                    "command again: finished chunks are kept"
                )
        return max(1, self._workers)

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        stage: str = "",
        alone: int | None = None,
        noted: Noted[Item] | None = None,
    ) -> Iterator[tuple[Item, Result | Failure]]:
        """See :class:`tasks.executor.Executor`."""
        if not items:
            return
        work = Work(function, stage, self._cores, RetryPolicy.of(self._settings))
        self._seen = time.monotonic()
        with self._known_to_workers(work) as name:
            flight = _Flight(self, name, items, alone, alone or self._settings.deaths, noted)
            try:
                yield from flight.outcomes()
            finally:
                flight.cancel()

    @contextmanager
    def _known_to_workers(self, work: Work) -> Iterator[str]:
        name = f"rfss-{work.stage or 'work'}-{uuid.uuid4().hex[:12]}"
        self._tell_workers(WorkPlugin(name, cloudpickle.dumps(work)))
        try:
            yield name
        finally:
            # A scheduler that went away has forgotten it already.
            with suppress(OSError, TimeoutError, ValueError):
                self.client.unregister_worker_plugin(name)

    def _tell_workers(self, plugin: WorkPlugin) -> None:
        """Register the plugin; a worker that dies while it is told of it fails the whole call, and others need it."""
        since = time.monotonic()
        while True:
            try:
                self.client.register_plugin(plugin, name=plugin.name)
            except (OSError, TimeoutError) as error:
                self.check_connection()
                if time.monotonic() - since > self.wait_s:
                    raise self._lost() from error
                time.sleep(AGAIN_S)
            else:
                return

    def _lost(self) -> ExecutionError:
        return ExecutionError(
            f"the connection to the scheduler of {self.name} is lost; start the same command again: finished chunks "
            "are kept"
        )

    def check_connection(self) -> None:
        """Raise where the scheduler went away.

        Raises:
            ExecutionError: it did.
        """
        if self.client.status != "running":
            raise self._lost()


class _Flight:
    """The items of one ``map``: waiting, in the air, suspected."""

    def __init__(
        self,
        executor: DaskExecutor,
        name: str,
        items: Sequence[Any],
        alone: int | None,
        deaths: int,
        noted: Noted[Any] | None,
    ) -> None:
        self._executor = executor
        self._name = name
        self._items = items
        self._noted = noted
        self._deaths_alone = deaths
        self._waiting = deque(range(len(items)) if alone is None else ())
        self._careful: deque[int] = deque()
        """Were in a worker that died: to be run again, each in a task of its own."""
        self._alone: deque[int] = deque(() if alone is None else range(len(items)))
        self._running: dict[Key, list[int]] = {}
        self._futures: dict[Key, Future[Any]] = {}
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._deaths: Counter[int] = Counter()
        self._died_alone: Counter[int] = Counter()
        self._lost: Counter[int] = Counter()
        self._guest: int | None = None
        """The item that has the cluster for itself."""
        self._mean_s: float | None = None

    def outcomes(self) -> Iterator[tuple[Any, Any]]:
        """Yield all items with what became of them."""
        while True:
            self._fill()
            if not self._running:
                return
            try:
                future = self._ended.get(timeout=COUNT_EVERY_S)
            except queue.Empty:
                self._executor.check_connection()
                continue
            yield from self._settle(future)

    def cancel(self) -> None:
        """Call back what is still in the air."""
        if self._futures:
            with suppress(OSError, TimeoutError):
                self._executor.client.cancel(list(self._futures.values()))
        self._futures.clear()
        self._running.clear()
        self._executor.in_flight = 0

    def _fill(self) -> None:
        bound = self._executor.workers * IN_FLIGHT_PER_WORKER
        while len(self._running) < bound and (self._waiting or self._careful) and self._guest is None:
            if self._waiting:
                size = self._batch_size()
                self._submit([self._waiting.popleft() for _ in range(min(size, len(self._waiting)))])
            else:
                self._submit([self._careful.popleft()])
        if not self._running and self._alone:
            self._guest = self._alone.popleft()
            self._submit([self._guest])

    def _batch_size(self) -> int:
        if self._mean_s is None:
            return 1
        fair = math.ceil(len(self._waiting) / (self._executor.workers * IN_FLIGHT_PER_WORKER))
        return max(1, min(BATCH_ITEMS, fair, int(BATCH_S / max(1e-6, self._mean_s))))

    def _submit(self, indices: list[int]) -> None:
        payload = [cloudpickle.dumps(self._items[index]) for index in indices]
        # pure=False: the records decide what may be skipped, not Dask's idea of equal arguments.
        future = self._executor.client.submit(run_batch, self._name, payload, pure=False)
        self._running[future.key] = indices
        self._futures[future.key] = future
        self._executor.in_flight += len(indices)
        future.add_done_callback(self._ended.put)

    def _settle(self, future: Future[Any]) -> Iterator[tuple[Any, Any]]:
        indices = self._running.pop(future.key, None)
        if indices is None:
            return
        del self._futures[future.key]
        self._executor.in_flight -= len(indices)
        alone = self._guest in indices
        if alone:
            self._guest = None
        if future.status not in ("finished", "error"):
            self._executor.check_connection()
            yield from self._after_loss(indices, _lost_by(future.status), alone=alone)
            return
        try:
            # Even a finished one can fail: its worker died before the result was fetched, as did who ran it again.
            results = future.result()
        except Exception as error:  # noqa: BLE001 - not the items' own: theirs come back as results
            yield from self._after_loss(indices, error, alone=alone)
            return
        for index, data in zip(indices, results, strict=True):
            yield self._items[index], self._unpacked(index, data)

    def _after_loss(self, indices: list[int], error: Exception, *, alone: bool) -> Iterator[tuple[Any, Any]]:
        if isinstance(error, KilledWorker | WorkerDiedError):
            yield from self._after_death(indices, alone=alone)
        else:
            yield from self._put_back(indices, self._lost, error)

    def _unpacked(self, index: int, data: bytes) -> Any:
        try:
            ran = cloudpickle.loads(data)
            assert isinstance(ran, Ran)
        except Exception as error:  # noqa: BLE001 - what the driver cannot unpickle is the item's failure
            return Failure(error)
        self._mean_s = ran.seconds if self._mean_s is None else 0.8 * self._mean_s + 0.2 * ran.seconds
        for retry in ran.retries if self._noted else ():
            self._noted(self._items[index], retry)  # type: ignore[misc]
        return ran.value

    def _put_back(self, indices: list[int], counted: Counter[int], error: BaseException) -> Iterator[tuple[Any, Any]]:
        for index in indices:
            counted[index] += 1
            if counted[index] >= LOST_ATTEMPTS:
                yield self._items[index], Failure(error)
            else:
                self._careful.append(index)

    def _after_death(self, indices: list[int], *, alone: bool) -> Iterator[tuple[Any, Any]]:
        """Decide what becomes of what a dead worker held.

        Whatever shared the worker was put down with it. So the first deaths only mean another try, then a try alone,
        and even there a worker may be ended by others: by the machine's owner, or for memory that others took.
        """
        for index in indices:
            self._deaths[index] += 1
            self._died_alone[index] += alone
            if self._died_alone[index] >= self._deaths_alone:
                error = WorkerDiedError(
                    f"its worker process ended {self._died_alone[index]} times while it ran alone: a crash in native "
                    "code, or more memory than the worker may have"
                )
                yield self._items[index], Failure(error)
                continue
            if self._noted:
                self._noted(
                    self._items[index],
                    Retry(self._deaths[index], WorkerDiedError.reason, "its worker process ended while it was there"),
                )
            again = self._alone if self._deaths[index] >= DEATHS_IN_COMPANY or alone else self._careful
            again.append(index)


def _lost_by(status: str | None) -> ExecutionError:
    """Return what it means that a task is neither finished nor an error."""
    if status == "lost":
        return WorkerDiedError("its worker process ended before its result was fetched")
    return ExecutionError(f"the scheduler has {status} it")

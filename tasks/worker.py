"""What runs in a Dask worker: plain functions over items, with retries, beside the scheduler's own machinery."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
from distributed import get_worker, secede
from distributed.diagnostics.plugin import WorkerPlugin

from rfss_core.errors import ExecutionError
from tasks.log_context import LogContext, log_context, log_fields, unit_fields
from tasks.logs import write_worker_log
from tasks.overlap import overlapped
from tasks.phases import before_computing
from tasks.retry import Retry, RetryPolicy, call_with_retries, describe
from tasks.threads import configure_threads, threads_for

log = logging.getLogger("rfss")


@dataclass(frozen=True)
class Failure:
    """An item whose function raised something that is no result."""

    error: BaseException
    trace: str = ""
    """The worker's traceback."""


@dataclass(frozen=True)
class Ran:
    """One item that was run."""

    value: Any
    """What the function returned, or a :class:`Failure`."""
    seconds: float
    retries: tuple[Retry, ...] = ()


@dataclass(frozen=True)
class Work:
    """One function for many items, and how it is run."""

    function: Callable[[Any], Any]
    stage: str
    cores: int | None
    """Cores of the worker; None: as many as it has threads."""
    policy: RetryPolicy
    log: LogContext = field(default_factory=log_context)
    """Of the run, for the lines that are written where it is done."""


class WorkPlugin(WorkerPlugin):
    """Brings one pickled :class:`Work` to every worker once, also to those that join later.

    It travels as bytes and is unpickled inside a task: what cannot be imported here would close the worker's connection
    to the scheduler and lose the worker, without a word to the driver. So it is the item's own failure.
    """

    def __init__(self, name: str, payload: bytes) -> None:
        self.name = name
        self._payload = payload

    def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask's signature
        """Keep the bytes."""
        _payloads[self.name] = self._payload

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        """Forget them and what they became."""
        _payloads.pop(self.name, None)
        _works.pop(self.name, None)


_payloads: dict[str, bytes] = {}
_works: dict[str, Work] = {}
_lock = threading.Lock()


def run_batch(name: str, items: Sequence[bytes]) -> list[bytes]:
    """Run pickled items of the work of this name; return each one's pickled :class:`Ran`.

    Several items come together where they are so short that the scheduler would cost more than the work.
    """
    worker = get_worker()
    cores, who = worker.state.nthreads, str(worker.name)
    if len(items) > 1:
        return [ran for _, ran in overlapped(lambda item: _run(name, item, cores, who), items)]
    # While this one computes, the worker's thread is free for the next one's reading.
    with before_computing(secede):
        return [_run(name, items[0], cores, who)]


def run_item(work: Work, item: Any, worker: str = "") -> Ran:
    """Call the function with retries; whatever it raises is the item's :class:`Failure`.

    Args:
        work: what is done.
        item: what it is done with.
        worker: name of the worker process, for the log.
    """
    retries: list[Retry] = []
    started = time.perf_counter()
    value: Any
    with log_fields(work.log, stage=work.stage, worker=worker, **unit_fields(item)):
        log.debug("begins")
        try:
            value = call_with_retries(lambda: work.function(item), work.policy, retries)
            log.debug("ended")
        except Exception as error:
            # One item's failure is reported, the others go on.
            value = Failure(error, traceback.format_exc())
            # The driver decides what it means and tells it; here is where it happened.
            log.debug("failed", exc_info=True)
    return Ran(value, time.perf_counter() - started, tuple(retries))


def _run(name: str, item: bytes, nthreads: int, worker: str) -> bytes:
    try:
        work = _work(name)
        configure_threads(threads_for(work.stage, work.cores or nthreads))
        ran = run_item(work, pickle.loads(item), worker)  # noqa: S301 - made by this very run's driver
    except Exception as error:  # noqa: BLE001 - see run_item
        ran = Ran(Failure(error, traceback.format_exc()), 0.0)
    if isinstance(ran.value, Failure) and has_lost_device(ran.value.error):
        # Every later call would fail in this process. Its end is seen as a death, and the item found by that.
        os._exit(1)
    try:
        return bytes(cloudpickle.dumps(ran))
    except Exception as error:  # noqa: BLE001 - an unpicklable result or error is one more failure of the item
        cause = ran.value.error if isinstance(ran.value, Failure) else error
        return bytes(cloudpickle.dumps(Ran(Failure(ExecutionError(describe(cause))), ran.seconds, ran.retries)))


def has_lost_device(error: BaseException) -> bool:
    """Return whether an error leaves the process's CUDA context unusable (an illegal access, a failed assertion)."""
    if type(error).__name__ == "OutOfMemoryError":
        return False
    return type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


def _work(name: str) -> Work:
    with _lock:
        if name not in _works:
            if name not in _payloads:
                raise ExecutionError(f"worker has not heard of work '{name}'; start the same command again")
            work: Work = pickle.loads(_payloads[name])  # noqa: S301 - made by this very run's driver
            write_worker_log(work.log.settings)
            _works[name] = work
        return _works[name]

"""A few chunks at once in one process, so that reading, computing and writing overlap (:mod:`tasks.phases`)."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_S = 0.01
WIDTH = 3
"""One chunk that reads, one that computes, one that writes."""
_START = threading.Thread.start.__code__


class _Stopped(BaseException):
    """Raised in the threads of a pipeline whose reader went away."""


def overlapped(
    call: Callable[[Item], Result], items: Iterable[Item], width: int = WIDTH
) -> Iterator[tuple[Item, Result]]:
    """Call over items in a few threads and yield the results in the items' order.

    Whoever stops reading, by an error or by Ctrl-C, stops the work: what runs is interrupted where Python next can.

    Args:
        call: thread-safe; its phases take turns.
        items: taken as places become free.
        width: calls at once.
    """
    busy: set[int] = set()
    running: deque[tuple[Item, Future[Result]]] = deque()

    def work(item: Item) -> Result:
        busy.add(threading.get_ident())
        try:
            return call(item)
        finally:
            busy.discard(threading.get_ident())

    pool = ThreadPoolExecutor(width, thread_name_prefix="rfss-chunk")
    try:
        for item in items:
            running.append((item, pool.submit(work, item)))
            if len(running) >= width:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _interrupt(busy)
        pool.shutdown(wait=True)


def _interrupt(busy: set[int]) -> None:
    """Raise :class:`_Stopped` in each of the threads, as soon as it is where that does no harm."""
    waiting = set(busy)
    while waiting := waiting & busy:
        for thread in list(waiting):
            if not _must_go_on(thread):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))
                waiting.discard(thread)
        time.sleep(POLL_S)


def _must_go_on(thread: int) -> bool:
    """Return whether a thread imports or starts another thread.

    An import that is interrupted keeps its module's lock for ever: whoever imports that module next never returns. A
    thread that was started a moment ago has its parent's identity until it first runs, and gets what is raised in the
    parent: it dies, and the parent waits for its start for ever (zarr's event loop, say).
    """
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - the one way to see another thread's stack
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap" or frame.f_code is _START:
            return True
        frame = frame.f_back
    return False

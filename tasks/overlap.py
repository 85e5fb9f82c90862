"""A few chunks at once in one process, so that reading, computing and writing overlap (:mod:`tasks.phases`)."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WIDTH = 3
"""One chunk that reads, one that computes, one that writes."""


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
        for thread in list(busy):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stopped))
        pool.shutdown(wait=True)

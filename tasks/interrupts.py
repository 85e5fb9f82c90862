"""Ctrl-C and clusters: workers do not hear it, and it waits until a cluster that is being started can be closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from the worker processes of a cluster that is started inside: it is the driver's, which stops them.

    A terminal sends it to the whole process group, and a worker would fill the screen with its traceback. Threads and
    processes inherit the mask: the cluster's event loop, and so each worker, those that adaptive scaling adds too.
    """
    # Whichever thread starts it unblocks SIGINT afterwards.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def put_off() -> Iterator[None]:
    """Let what stops the driver wait until the end of the block; whoever asks a second time is heard at once.

    Half a cluster cannot be closed: who stops its start gets no object to close, and Dask's own attempt at exit ends in
    a traceback. In any but the main thread, where signals' handlers never run, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: handler for number in STOPS if callable(handler := signal.getsignal(number))}

    def later(number: int, frame: FrameType | None) -> None:
        if came:
            before[signal.Signals(number)](number, frame)
        came.append(number)

    for number in before:
        signal.signal(number, later)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])

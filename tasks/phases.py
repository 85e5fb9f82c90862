"""Phases of a chunk: read, compute, write. In one process one chunk reads while another computes and a third writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_reader = threading.Lock()
_computer = threading.Lock()
_this_thread = threading.local()


class Phases:
    """Clock of one chunk, and its place in the process's pipeline.

    One chunk of a process reads at a time and one computes; a device has room for one, and a second reader would only
    hold more slices in memory. Phases of one chunk follow each other and are never nested. Waiting is no phase's time.

    Attributes:
        read_s: wall seconds of reading.
        compute_s: wall seconds of computing.
        write_s: wall seconds of writing.
    """

    def __init__(self) -> None:
        self.read_s = 0.0
        self.compute_s = 0.0
        self.write_s = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wait until no other chunk of this process reads, and time what follows."""
        with _reader:
            started = time.perf_counter()
            try:
                yield
            finally:
                self.read_s += time.perf_counter() - started

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Wait until no other chunk of this process computes, let the next one begin to read, and time what follows."""
        with _computer:
            _let_next_begin()
            started = time.perf_counter()
            try:
                yield
            finally:
                self.compute_s += time.perf_counter() - started

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time what follows."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.write_s += time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Return the three figures as a completion record keeps them."""
        return {"read": self.read_s, "compute": self.compute_s, "write": self.write_s}


@contextmanager
def before_computing(action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` once in this thread, when its chunk first computes: the place to let the next one begin."""
    _this_thread.action = action
    try:
        yield
    finally:
        _this_thread.action = None


def _let_next_begin() -> None:
    action = getattr(_this_thread, "action", None)
    if action is not None:
        _this_thread.action = None
        action()

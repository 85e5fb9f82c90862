"""A cache of arrays that is bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy.typing as npt


class ArrayCache:
    """Least-recently-used cache of what a reader returns, by row; callers get copies.

    Safe to share between threads. Two threads that miss the same row at once may both read it; both get equal arrays.

    Args:
        read: returns the array of one row.
        max_bytes: arrays are dropped, the least recently used first, until they fit; an array larger than this is
            returned but never kept.
    """

    def __init__(self, read: Callable[[int], npt.NDArray[Any]], max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept now."""
        return self._bytes

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                return self._kept[row].copy()
        array = self._read(row)
        with self._lock:
            if row not in self._kept and array.nbytes <= self._max_bytes:
                self._kept[row] = array
                self._bytes += array.nbytes
                while self._bytes > self._max_bytes:
                    _, dropped = self._kept.popitem(last=False)
                    self._bytes -= dropped.nbytes
        # Copies go out: a caller that wrote into a kept array would change what the next one reads, and torch refuses
        # arrays that are not writeable.
        return array.copy()

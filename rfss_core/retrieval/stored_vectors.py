"""Vectors as they were given, memory-mapped beside the index: what candidates are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rfss_core.errors import CorruptIndexError, SupportError
from rfss_core.retrieval.index import FlatIndex, Vectors
from rfss_core.retrieval.vectors import unit_vectors

BLOCK = 2**16
"""Rows that are read at once."""


class VectorSource(Protocol):
    """Rows to index, read in pieces. An array wrapped by :class:`ArraySource`, or a reader of a store."""

    @property
    def size(self) -> int:
        """Rows."""
        ...

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """Return rows first to last (exclusive): float16 or float32 [last - first, D], not yet normalised."""
        ...


class ArraySource:
    """An array [N, D] as a source; a memory-mapped one is read as it is asked for."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    @property
    def size(self) -> int:
        """Rows."""
        return len(self._array)

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """See :class:`VectorSource`."""
        return np.asarray(self._array[first:last])


def blocks(source: VectorSource) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield (first row, rows) over a source."""
    for first in range(0, source.size, BLOCK):
        yield first, source.read(first, min(first + BLOCK, source.size))


def checked_units(vectors: npt.NDArray[Any], rows: npt.NDArray[np.int64] | range) -> Vectors:
    """Return unit vectors; ``rows`` names them in the message.

    Raises:
        SupportError: a vector is zero or not finite, or the array is not [n, D] of floats.
    """
    if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
        raise SupportError(f"vectors have shape {vectors.shape} and dtype {vectors.dtype}; give float16 or 32 [n, D]")
    units, bad = unit_vectors(vectors)
    if bad.size:
        raise SupportError(f"the vector of row {rows[int(bad[0])]} is not finite or is zero; embed it again")
    return units


class StoredVectors:
    """Rows of consecutive ``.npy`` files as one :class:`VectorSource` with random access.

    Args:
        paths: one file a shard, in the order of rows.
        rows: rows of each file.
        dim: components of a vector.

    Raises:
        CorruptIndexError: a file is no array of that shape.
    """

    def __init__(self, paths: Sequence[Path], rows: Sequence[int], dim: int) -> None:
        self.dim = dim
        self._parts = [_mapped(path, count, dim) for path, count in zip(paths, rows, strict=True)]
        self._firsts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.dtype: np.dtype[Any] = np.result_type(*{part.dtype for part in self._parts})
        """The widest form in which vectors were given: float16 or float32."""

    @property
    def size(self) -> int:
        """Rows."""
        return int(self._firsts[-1])

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """See :class:`VectorSource`."""
        pieces = []
        for part, start in zip(self._parts, self._firsts[:-1], strict=True):
            low, high = max(first - start, 0), min(last - start, len(part))
            if low < high:
                pieces.append(part[low:high])
        return np.concatenate(pieces) if pieces else np.empty((0, self.dim), dtype=np.float32)

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the vectors of rows of any shape, float32 [..., D], not normalised."""
        found = np.empty((rows.size, self.dim), dtype=self.dtype)
        return self.take_into(rows, found, np.empty((*rows.shape, self.dim), dtype=np.float32))

    def take_into(
        self, rows: npt.NDArray[np.int64], scratch: npt.NDArray[Any], out: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Do what :meth:`take` does, in memory that the caller keeps.

        Args:
            rows: int64 of any shape.
            scratch: [n, D] of :attr:`dtype`, n at least the number of rows; overwritten.
            out: float32 [..., D], C-contiguous.

        Returns:
            ``out``.
        """
        flat = rows.ravel()
        found = scratch[: flat.size]
        # By rising row a file is read in one go, and from its beginning to its end.
        order = np.argsort(flat)
        rising = flat[order]
        bounds = np.searchsorted(rising, self._firsts)
        for part, start, low, high in zip(self._parts, self._firsts[:-1], bounds[:-1], bounds[1:], strict=True):
            if low < high:
                found[order[low:high]] = part.take(rising[low:high] - start, axis=0)
        widen(found, out.reshape(-1, self.dim))
        return out


def widen(narrow: npt.NDArray[Any], out: npt.NDArray[np.float32]) -> None:
    """Copy float16 or float32 [n, D] into float32 [n, D]; numpy widens float16 twenty times more slowly than torch."""
    import torch

    # Torch calls on other threads for more than that, which are better left to the caller.
    step = max(1, 32_768 // narrow.shape[1])
    source, target = torch.from_numpy(narrow), torch.from_numpy(out)
    for first in range(0, len(narrow), step):
        target[first : first + step].copy_(source[first : first + step])


def nearest_among(
    source: StoredVectors,
    queries: Vectors,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Search exactly over stored rows, block by block.

    Args:
        source: the stored vectors.
        queries: L2-normalised float32 [n, D].
        k: neighbours of a query, at most the number of allowed rows.
        allowed: bool [N]; None allows all.
        threads: FAISS's threads.

    Returns:
        Rows int64 [n, k] and squared L2 distances float64 [n, k], by distance and then row.
    """
    rows = np.empty((len(queries), 0), dtype=np.int64)
    distances = np.empty((len(queries), 0), dtype=np.float64)
    chosen = np.arange(source.size) if allowed is None else np.flatnonzero(allowed)
    for start in range(0, len(chosen), BLOCK):
        members = chosen[start : start + BLOCK]
        # A run of rows is read faster than a choice of them.
        whole = len(members) == members[-1] - members[0] + 1
        found = source.read(int(members[0]), int(members[-1]) + 1) if whole else source.take(members)
        near, far = FlatIndex(checked_units(found, members), threads).measure(queries, k)
        rows = np.concatenate([rows, members[near]], axis=1)
        distances = np.concatenate([distances, far], axis=1)
        order = np.lexsort((rows, distances), axis=1)[:, :k]
        rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
    return rows, distances


def _mapped(path: Path, rows: int, dim: int) -> npt.NDArray[Any]:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptIndexError(f"stored vectors '{path}' cannot be read: {error}") from error
    if mapped.shape != (rows, dim) or mapped.dtype not in (np.float16, np.float32):
        raise CorruptIndexError(
            f"stored vectors '{path}' have shape {mapped.shape} and dtype {mapped.dtype}; the manifest says "
            f"({rows}, {dim}): they belong to another generation"
        )
    # numpy.memmap is slower to index than the plain array over the same pages.
    return np.asarray(mapped)

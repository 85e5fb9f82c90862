"""Measuring candidates again: exact distances and their order, whatever an approximate index made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import ROUNDING, Vectors
from rfss_core.retrieval.stored_vectors import StoredVectors

_ROWS = 1024
"""Candidates measured together. More leave a core's own cache, fewer are lost in calls; a second thread would wait for
the interpreter's lock as long as it computes."""

Rows = npt.NDArray[np.int64]
Rough = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]


def nearest_candidates(
    vectors: StoredVectors, queries: Vectors, found: Rows, rough: Rough | None, k: int
) -> tuple[Rows, Exact]:
    """Order candidates by their exact distances, as :class:`rfss_core.retrieval.index.FlatIndex` measures them.

    Args:
        vectors: the vectors as they were given.
        queries: L2-normalised float32 [n, D].
        found: candidates, rows int64 [n, w]; -1 where there is none. No row twice.
        rough: their squared L2 distances, good to 1e-5; None where what is known of them is worse.
        k: nearest candidates to return, at most w.

    Returns:
        Rows int64 [n, k] and squared L2 distances float64 [n, k], by distance and then row.
    """
    step = max(1, _ROWS // found.shape[1])
    rows = np.empty((len(queries), k), dtype=np.int64)
    distances = np.empty((len(queries), k), dtype=np.float64)
    bench = _Bench(vectors, step * found.shape[1])
    for first in range(0, len(queries), step):
        part = slice(first, first + step)
        known = None if rough is None else rough[part]
        rows[part], distances[part] = bench.measure(queries[part], found[part], known, k)
    return rows, distances


class _Bench:
    """Room to measure in: fresh arrays would cost more, in page faults, than the arithmetic."""

    def __init__(self, vectors: StoredVectors, rows: int) -> None:
        self._vectors = vectors
        self._dim = vectors.dim
        self._narrow = np.empty((rows, self._dim), dtype=vectors.dtype)
        self._all = np.empty((rows, self._dim), dtype=np.float32)
        self._near = np.empty((rows, self._dim), dtype=np.float32)
        self._wide = np.empty((rows, self._dim), dtype=np.float64)
        self._squares = np.empty((rows, self._dim), dtype=np.float64)

    def measure(self, queries: Vectors, found: Rows, rough: Rough | None, k: int) -> tuple[Rows, Exact]:
        missing = found < 0
        found = np.where(missing, 0, found)
        candidates = None
        if rough is None:
            candidates = self._take(found, self._all)
            lengths = np.sqrt(np.vecdot(candidates, candidates))
            # Between unit vectors; good to 1e-6, which decides who is looked at in float64.
            rough = 2 - 2 * np.einsum("nwd,nd->nw", candidates, queries) / lengths
        rough = np.where(missing, np.float32(np.inf), rough)
        last = np.partition(rough, k - 1, axis=1)[:, k - 1, None]
        width = int(np.count_nonzero(rough <= last + ROUNDING, axis=1).max())
        nearest = np.argpartition(rough, width - 1, axis=1)[:, :width]
        rows = np.take_along_axis(found, nearest, axis=1)
        if candidates is None:
            near = self._take(rows, self._near)
        else:
            near = self._shaped(self._near, rows.shape)
            places = nearest + np.arange(len(rows))[:, None] * found.shape[1]
            candidates.reshape(-1, self._dim).take(places, axis=0, out=near, mode="clip")
        exact = self._exact(queries, near)
        exact[np.take_along_axis(missing, nearest, axis=1)] = math.inf
        order = np.lexsort((rows, exact), axis=1)[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(exact, order, axis=1)

    def _exact(self, queries: Vectors, near: npt.NDArray[np.float32]) -> Exact:
        """Do what ``unit_vectors`` and ``squared_distances`` do, step for step, in place."""
        wide, squares = self._shaped(self._wide, near.shape[:2]), self._shaped(self._squares, near.shape[:2])
        np.copyto(wide, near)
        lengths = np.sqrt(np.add.reduce(np.multiply(wide, wide, out=squares), axis=2))
        units = np.divide(wide, lengths[..., None], out=near, casting="same_kind")
        np.copyto(wide, units)
        np.subtract(wide, queries.astype(np.float64)[:, None], out=wide)
        return np.asarray(np.add.reduce(np.multiply(wide, wide, out=squares), axis=2))

    def _take(self, rows: Rows, out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self._vectors.take_into(rows, self._narrow, self._shaped(out, rows.shape))

    def _shaped(self, room: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        return room[: math.prod(shape)].reshape(*shape, self._dim)

"""Nearest vectors: FAISS behind an interface small enough for other kinds of index to fill."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rfss_core.errors import SupportError
from rfss_core.retrieval.gpus import MOST_NEIGHBOURS, gpu_count, on_gpus

Vectors = npt.NDArray[np.float32]
"""L2-normalised float32 [N, D]."""


class VectorIndex(Protocol):
    """What a retriever asks of an index."""

    @property
    def size(self) -> int:
        """Vectors in the index."""
        ...

    @property
    def dim(self) -> int:
        """Components of a vector."""
        ...

    def search(
        self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the k nearest allowed vectors of each query.

        Args:
            queries: L2-normalised float32 [n, D].
            k: neighbours of a query.
            allowed: bool [N], the rows that may be returned; None allows all. The restriction holds before the top-k
                is taken, so it never costs a neighbour.

        Returns:
            indices int64 [n, k'] and squared L2 distances float32 [n, k'], nearest first and equal distances by rising
            index; k' is k, or the number of allowed rows where that is less.
        """
        ...

    def vectors_of(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """Return the vectors of rows [n], L2-normalised float32 [n, D]."""
        ...


class FlatIndex:
    """Exact search by FAISS ``IndexFlatL2`` (Johnson, Douze and Jégou, Billion-scale similarity search with GPUs).

    FAISS computes in float32, with an arithmetic that depends on how many queries it is asked at once, and leaves the
    order of equal distances open. Here its candidates are measured again in float64 and ordered by distance and index,
    so a result depends on the query and the vectors alone.

    Args:
        vectors: L2-normalised float32 [N, D], as :func:`rfss_core.retrieval.vectors.unit_vectors` returns them.
        threads: FAISS's threads in this process; None leaves them as they are.
        gpu: search on GPUs where faiss-gpu sees any; filtered searches stay on the CPU, since FAISS's GPU indexes take
            no selector.

    Raises:
        SupportError: no vectors.
    """

    def __init__(self, vectors: Vectors, threads: int | None = None, gpu: bool = False) -> None:
        import faiss  # a library user who only builds support sets needs no FAISS

        if vectors.ndim != 2 or vectors.size == 0:
            raise SupportError(f"an index needs vectors [N, D], got shape {vectors.shape}")
        self._faiss: Any = faiss
        self._threads = threads
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._index: Any = faiss.IndexFlatL2(int(vectors.shape[1]))
        self._index.add(self._vectors)
        self._on_gpus = on_gpus(self._index) if gpu and gpu_count() else None

    @property
    def size(self) -> int:
        """Vectors in the index."""
        return int(self._vectors.shape[0])

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self._vectors.shape[1])

    def search(
        self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the k nearest allowed vectors of each query; see :meth:`VectorIndex.search`.

        Raises:
            SupportError: queries of another dimension or not of unit length, or no row is allowed.
        """
        indices, distances = self.measure(queries, k, allowed)
        return indices, distances.astype(np.float32)

    def vectors_of(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`VectorIndex.vectors_of`."""
        return self._vectors[rows]

    def measure(
        self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Do what :meth:`search` does, and return the distances as they were compared, in float64."""
        rows = check_search(queries, self.size, self.dim, allowed)
        k = min(k, rows)
        if self._threads is not None:
            self._faiss.omp_set_num_threads(self._threads)
        params = None
        if allowed is not None and rows < self.size:
            selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            params = self._faiss.SearchParameters(sel=selector)
        # One more than k shows whether the k-th distance is tied with the next.
        width = min(k + 1, rows)
        while True:
            index = self._index
            if self._on_gpus is not None and params is None and width <= MOST_NEIGHBOURS:
                index = self._on_gpus
            rough, found = index.search(np.ascontiguousarray(queries, dtype=np.float32), width, params=params)
            if width == rows or not np.any(rough[:, width - 1] <= rough[:, k - 1] + ROUNDING):
                return self._ordered(queries, found, k)
            width = min(2 * width, rows)

    def _ordered(
        self, queries: Vectors, found: npt.NDArray[np.int64], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        indices = np.empty((len(queries), k), dtype=np.int64)
        distances = np.empty((len(queries), k), dtype=np.float64)
        for i, (query, candidates) in enumerate(zip(queries, found, strict=True)):
            exact = squared_distances(query, self._vectors[candidates])
            order = np.lexsort((candidates, exact))[:k]
            indices[i], distances[i] = candidates[order], exact[order]
        return indices, distances


ROUNDING = 1e-5
"""Twice the largest error of FAISS's float32 squared distances between unit vectors: nearer than this is tied."""


def check_search(queries: Vectors, size: int, dim: int, allowed: npt.NDArray[np.bool_] | None) -> int:
    """Check the arguments of :meth:`VectorIndex.search` and return the number of allowed rows.

    FAISS answers a NaN with row -1, which numpy would take for the last row.

    Raises:
        SupportError: queries of another dimension or not of unit length (NaN, zero), a filter of another length, or
            no row is allowed.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise SupportError(
            f"queries have shape {queries.shape} but the index holds vectors of {dim} components; "
            "embed both with the same model"
        )
    lengths = np.sum(np.square(queries, dtype=np.float32), axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < UNIT))
    if bad.size:
        raise SupportError(
            f"query {int(bad[0])} has squared length {lengths[bad[0]]}, not 1; normalise queries with unit_vectors, "
            "which finds those that are zero or not finite"
        )
    if allowed is not None and allowed.shape != (size,):
        raise SupportError(f"the filter has shape {allowed.shape}, but the index holds {size} rows")
    rows = size if allowed is None else int(np.count_nonzero(allowed))
    if rows == 0:
        raise SupportError("no row of the index is allowed; widen the filter")
    return rows


UNIT = 1e-3
"""How far a squared length may be from 1."""


def squared_distances(query: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the squared L2 distances float64 [N] from a vector [D] to vectors [N, D]."""
    difference = vectors.astype(np.float64) - query.astype(np.float64)
    # Not einsum or a matrix product: their order of summation depends on N.
    return np.asarray(np.sum(difference * difference, axis=1), dtype=np.float64)

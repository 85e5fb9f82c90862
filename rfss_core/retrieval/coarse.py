"""The nearest inverted lists of a vector, whatever it is asked together with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import ROUNDING, Vectors, squared_distances

_SPARE = 4
"""Lists looked at beyond those asked for, to settle ties."""


class CoarseQuantizer:
    """Finds the lists whose centroids are nearest.

    FAISS measures with matrix products whose last bits depend on how many vectors it is asked at once. Where two lists
    are too close to call, their distances are measured again in float64, so that a vector falls into the same list in
    every shard and every batch.

    Args:
        centroids: float32 [nlist, D].
        index: FAISS index over them, on the CPU or on GPUs.
    """

    def __init__(self, centroids: npt.NDArray[np.float32], index: Any) -> None:
        self._centroids = centroids
        self._index = index

    @property
    def nlist(self) -> int:
        """Inverted lists."""
        return len(self._centroids)

    def nearest(self, vectors: Vectors, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the n nearest lists int64 [m, n] and their squared L2 distances float32 [m, n], nearest first."""
        width = min(n + _SPARE, self.nlist)
        distances, lists = self._index.search(np.ascontiguousarray(vectors, dtype=np.float32), width)
        if n < width:
            # GPU and CPU may order what they cannot tell apart differently; so does one CPU for batches of two sizes.
            for row in np.flatnonzero(distances[:, n] <= distances[:, n - 1] + ROUNDING):
                unclear = distances[row, -1] <= distances[row, n - 1] + ROUNDING
                among = np.arange(self.nlist) if unclear else lists[row]
                exact = squared_distances(vectors[row], self._centroids[among])
                order = np.lexsort((among, exact))[:n]
                lists[row, :n], distances[row, :n] = among[order], exact[order]
        return np.ascontiguousarray(lists[:, :n]), np.ascontiguousarray(distances[:, :n])

"""Unit vectors: what embeddings must be before their squared distances rank anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SHORTEST = 1e-6
"""A vector that is not longer than this has no direction."""


def unit_vectors(vectors: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """L2-normalise vectors and find those that cannot be.

    Args:
        vectors: numbers [N, D], float16 or wider.

    Returns:
        float32 [N, D] of length 1, C-contiguous (rows that cannot be normalised are zero), and the int64 indices of
        the rows that are not finite or have no length.
    """
    wide = vectors.astype(np.float64)
    bad = ~np.isfinite(wide).all(axis=1)
    wide[bad] = 0
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    bad |= lengths[:, 0] <= SHORTEST
    wide[bad] = 0
    lengths[bad] = 1
    return np.ascontiguousarray(wide / lengths, dtype=np.float32), np.flatnonzero(bad).astype(np.int64)

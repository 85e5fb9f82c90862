"""Near-duplicates: slices whose embeddings all but coincide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.coverage import pair_distances
from rfss_core.retrieval.index import Vectors

_BLOCK = 1024
_SAMPLE = 10_000
_ROUNDING = 1e-4
"""More than the error of FAISS's float32 squared distances between unit vectors, and of a float32 projection."""

Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class DuplicateGroup:
    """Slices that near-duplicates connect.

    Attributes:
        rows: int64, rising.
        patients: their patients, sorted. More than one: the same image under two names would leak from a support set
            into what is measured.
    """

    rows: npt.NDArray[np.int64]
    patients: tuple[str, ...]

    @property
    def across_patients(self) -> bool:
        """Whether more than one patient is in the group."""
        return len(self.patients) > 1


def near_duplicates(
    vectors: Vectors, patients: Sequence[str], distance: float, block_rows: int = _BLOCK
) -> list[DuplicateGroup]:
    """Find the groups of slices that pairs at most ``distance`` apart connect (single linkage).

    Exact: FAISS's range search finds candidates, which are measured again in float64. Equal vectors are looked at once,
    and only vectors whose projections on the data's first principal direction lie within ``distance`` are compared.
    Time still grows with the square of N; blocks bound the memory.

    Args:
        vectors: L2-normalised float32 [N, D].
        patients: the patient of each slice.
        distance: L2 distance between unit vectors, from 0 (equal embeddings alone) to 2.
        block_rows: rows to compare at once.

    Returns:
        Groups of at least two slices, by their first row.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, inverse = _distinct(vectors)
    n = len(unique)
    component = np.arange(n, dtype=np.int64)
    for one, other in _near_pairs(unique, distance, block_rows):
        # Joining after each block keeps one link a vector instead of all pairs.
        rows, columns = np.concatenate([np.arange(n), one]), np.concatenate([component, other])
        links = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n, n))
        _, labels = connected_components(links, directed=False)
        component = np.unique(labels, return_index=True)[1][labels].astype(np.int64)
    return _groups(component[inverse], patients)


def _distinct(vectors: Vectors) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Return the distinct rows and the place of each row among them."""
    # 0.0 instead of -0.0: equal numbers, equal bytes.
    plain = np.ascontiguousarray(vectors, dtype=np.float32) + np.float32(0)
    as_bytes = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return plain[first], np.asarray(inverse, dtype=np.int64)


def _near_pairs(vectors: Vectors, distance: float, block_rows: int) -> Iterator[Pairs]:
    import faiss

    projection = vectors @ _principal_direction(vectors)
    order = np.argsort(projection, kind="stable")
    ranked, along = vectors[order], projection[order].astype(np.float64)
    for start in range(0, len(vectors), block_rows):
        block = ranked[start : start + block_rows]
        end = int(np.searchsorted(along, along[start + len(block) - 1] + distance + _ROUNDING, side="right"))
        index: Any = faiss.IndexFlatL2(int(vectors.shape[1]))
        index.add(ranked[start:end])
        limits, _, found = index.range_search(block, distance**2 + _ROUNDING)
        one = np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        later = found > one
        one, other = one[later] + start, found[later] + start
        near = pair_distances(ranked, one, ranked, other) <= distance**2
        yield order[one[near]], order[other[near]]


def _principal_direction(vectors: Vectors) -> Vectors:
    sample = vectors[:: max(1, len(vectors) // _SAMPLE)].astype(np.float64)
    _, directions = np.linalg.eigh(np.atleast_2d(np.cov(sample.T, bias=True)))
    return np.asarray(directions[:, -1], dtype=np.float32)


def _groups(component: npt.NDArray[np.int64], patients: Sequence[str]) -> list[DuplicateGroup]:
    order = np.argsort(component, kind="stable")
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    groups = [part for part in np.split(order, starts[1:]) if len(part) > 1]
    found = [DuplicateGroup(np.sort(part), tuple(sorted({patients[row] for row in part}))) for part in groups]
    return sorted(found, key=lambda group: int(group.rows[0]))

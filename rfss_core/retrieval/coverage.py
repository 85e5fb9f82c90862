"""Coverage: how far every slice is from the nearest of those that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import Vectors

BLOCK_ROWS = 8192
"""Rows whose distances are computed at once: bounds the memory beside the vectors."""
_CENTRES = 1024
_PAIRS = 256
"""Pairs whose differences stay in the processor's cache."""


@dataclass(frozen=True)
class Coverage:
    """L2 distances (0 to 2) from slices to the nearest chosen one."""

    chosen: int
    """How many were chosen, besides those that were labelled before."""
    mean: float
    p95: float
    """95th percentile."""
    maximum: float
    """The covering radius."""


class NearestChosen:
    """The nearest of a growing set of chosen rows, for every row.

    A matrix product in float32 tells which rows a new choice may be nearest to; those are measured again in float64,
    one pair for itself, so that distances and ties depend neither on blocks nor on threads. A choice costs one pass
    over the vectors.

    Not scikit-learn's ``pairwise_distances_argmin_min``: it measures by matrix products alone, so that equal slices at
    different rows may differ in the last bit, and it starts anew with each choice.

    Args:
        vectors: L2-normalised float32 [N, D], as :func:`rfss_core.retrieval.vectors.unit_vectors` returns them; a
            memory-mapped array does as well.
        block_rows: rows to look at at once.

    Attributes:
        squared: float64 [N], squared L2 distance to the nearest chosen row; infinite before the first choice.
        owner: int64 [N], that row; -1 before the first choice. Of equally near ones, the one that was chosen first.
    """

    def __init__(self, vectors: Vectors, block_rows: int = BLOCK_ROWS) -> None:
        self._vectors = vectors
        self._block = block_rows
        # Twice the largest error of a float32 inner product of unit vectors (Higham, Accuracy and Stability, eq. 3.5).
        self._margin = (2 * vectors.shape[1] + 16) * float(np.finfo(np.float32).eps)
        self.squared = np.full(len(vectors), np.inf, dtype=np.float64)
        self.owner = np.full(len(vectors), -1, dtype=np.int64)

    def copy(self) -> NearestChosen:
        """Return the same state, to be grown independently."""
        other = NearestChosen(self._vectors, self._block)
        other.squared, other.owner = self.squared.copy(), self.owner.copy()
        return other

    def add(self, rows: npt.ArrayLike) -> None:
        """Choose further rows, in this order."""
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        for first in range(0, len(chosen), _CENTRES):
            part = chosen[first : first + _CENTRES]
            centres = np.ascontiguousarray(self._vectors[part], dtype=np.float32)
            for start in range(0, len(self._vectors), self._block):
                self._update(start, part, centres)

    def _update(self, start: int, part: npt.NDArray[np.int64], centres: Vectors) -> None:
        block = np.asarray(self._vectors[start : start + self._block], dtype=np.float32)
        squared, owner = self.squared[start : start + len(block)], self.owner[start : start + len(block)]
        rough = 2 - 2 * (block @ centres.T)
        limit = np.minimum(rough.min(axis=1) + 2 * self._margin, squared + self._margin)
        near, which = np.nonzero(rough <= limit[:, None])
        for first in range(0, len(near), self._block):
            row, centre = near[first : first + self._block], which[first : first + self._block]
            exact = pair_distances(block, row, centres, centre)
            order = np.lexsort((centre, exact, row))
            best = order[np.unique(row[order], return_index=True)[1]]
            best = best[exact[best] < squared[row[best]]]
            squared[row[best]], owner[row[best]] = exact[best], part[centre[best]]


def pair_distances(
    vectors: Vectors, rows: npt.NDArray[np.int64], others: Vectors, columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the squared L2 distance of each pair (row of ``vectors``, row of ``others``): float64 [n]."""
    squared = np.empty(len(rows), dtype=np.float64)
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        difference = np.subtract(vectors[rows[part]], others[columns[part]], dtype=np.float64)
        # Not einsum or a matrix product: their order of summation depends on how many rows there are.
        squared[part] = np.sum(np.square(difference, out=difference), axis=1)
    return squared


@dataclass(frozen=True, eq=False)
class Growth:
    """How coverage grows as slices are chosen one after another.

    Attributes:
        distances: float64 [n], L2 distance of each slice to the nearest one that was labelled or chosen before it;
            infinite for the first of all.
        curve: coverage by the first of them, for several numbers; no figure rises along it.
        covers: int64 [n], how many of the counted rows have the slice as their nearest in the end, itself included.
    """

    distances: npt.NDArray[np.float64]
    curve: list[Coverage]
    covers: npt.NDArray[np.int64]


def grow(
    start: NearestChosen, rows: npt.NDArray[np.int64], counts: Sequence[int], counted: npt.NDArray[np.bool_]
) -> Growth:
    """Choose rows one after another and measure the coverage on the way.

    Args:
        start: distances to the rows that were labelled before, if any; left as it is.
        rows: int64 [n], chosen rows in order.
        counts: numbers from 0 to n at which to measure; 0 only where ``start`` holds something.
        counted: bool [N], the rows that count: those without a label before the choice. Chosen ones count with
            distance 0, so that the figures of different choices speak of the same rows.
    """
    nearest, distances = start.copy(), np.empty(len(rows), dtype=np.float64)
    curve = [_measure(nearest, 0, counted)] if 0 in counts else []
    for done, row in enumerate(rows, start=1):
        distances[done - 1] = np.sqrt(nearest.squared[row])
        nearest.add(row)
        if done in counts:
            curve.append(_measure(nearest, done, counted))
    owners, numbers = np.unique(nearest.owner[counted], return_counts=True)
    covered = dict(zip(owners.tolist(), numbers.tolist(), strict=True))
    # What equals an earlier choice is nearest to nothing.
    covers = np.array([covered.get(row, 0) for row in rows.tolist()], dtype=np.int64)
    return Growth(distances, curve, covers)


def _measure(nearest: NearestChosen, chosen: int, counted: npt.NDArray[np.bool_]) -> Coverage:
    distances = np.sqrt(nearest.squared[counted])
    mean = float(distances.mean())
    return Coverage(chosen, mean, float(np.percentile(distances, 95)), float(distances.max()))


def mean_curve(curves: Sequence[Sequence[Coverage]]) -> list[Coverage]:
    """Return the mean of several curves over the same counts."""
    return [
        Coverage(
            points[0].chosen,
            float(np.mean([point.mean for point in points])),
            float(np.mean([point.p95 for point in points])),
            float(np.mean([point.maximum for point in points])),
        )
        for points in zip(*curves, strict=True)
    ]


def curve_counts(n: int, labelled: bool, points: int = 20) -> list[int]:
    """Return numbers of chosen slices for a curve: denser where it is steep, ending at n, from 0 where it can."""
    rising = np.unique(np.rint(np.geomspace(1, n, points)).astype(np.int64))
    return [*([0] if labelled else []), *(int(count) for count in rising)]

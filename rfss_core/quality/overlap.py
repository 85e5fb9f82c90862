"""Dice between pseudo-labels, which signals compare. Reported metrics come from MONAI (metrics.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Overlap:
    """Pixels that pairs of label maps share, n pairs and C classes."""

    both: npt.NDArray[np.int64]
    """[n, C]: pixels that have the class in both maps."""
    total: npt.NDArray[np.int64]
    """[n, C]: pixels of the class in the first map, plus those in the second."""

    @property
    def dice(self) -> npt.NDArray[np.float64]:
        """[n, C]: Dice of each pair; NaN where neither map has the class."""
        return _ratio(self.both, self.total)

    @property
    def pooled(self) -> npt.NDArray[np.float64]:
        """[C]: Dice over all pairs at once, in which large objects weigh more; NaN where no map has the class."""
        return _ratio(self.both.sum(axis=0), self.total.sum(axis=0))


def overlap(
    pairs: Sequence[tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]], values: Sequence[int]
) -> Overlap:
    """Count the pixels that pairs of label maps share.

    Args:
        pairs: label maps, the two of a pair of one shape.
        values: label values.
    """
    both = [[np.count_nonzero((one == value) & (other == value)) for value in values] for one, other in pairs]
    total = [
        [np.count_nonzero(one == value) + np.count_nonzero(other == value) for value in values] for one, other in pairs
    ]
    shape = (len(pairs), len(values))
    return Overlap(np.array(both, np.int64).reshape(shape), np.array(total, np.int64).reshape(shape))


def mask_dice(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], axis: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return Dice over ``axis``, NaN where both masks are empty.

    Args:
        first: mask.
        second: mask of the same shape.
        axis: the axes that one Dice covers.
    """
    return _ratio(np.asarray((first & second).sum(axis=axis)), np.asarray(first.sum(axis=axis) + second.sum(axis=axis)))


def _ratio(both: npt.NDArray[np.integer[Any]], total: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    dice: npt.NDArray[np.float64] = np.full(total.shape, np.nan)
    np.divide(2.0 * both, total, out=dice, where=total > 0)
    return dice


def finite_mean(values: npt.NDArray[Any], axis: int | tuple[int, ...] | None = None) -> npt.NDArray[np.float64]:
    """Return the mean of the finite values along ``axis``, NaN where there is none.

    Args:
        values: floats.
        axis: as numpy's.
    """
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis, dtype=np.float64)
    mean: npt.NDArray[np.float64] = np.full(np.shape(total), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean

"""What the uncertainty of voxels is worth: how many errors lie among the most uncertain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = 16
"""Levels in which uncertainty, 0 to 255, is counted."""


@dataclass(frozen=True)
class VoxelPoint:
    """What ignoring the voxels from one level on does to the held-out cases."""

    level: float
    """Voxels of at least this uncertainty are ignored, 0 to 1."""
    ignored: float
    """Their share of all voxels."""
    ignored_foreground: float
    """Their share of the pseudo-labels' foreground."""
    errors_found: float
    """Share of all wrong voxels that lies among them."""
    error_rate: float
    """Share of the voxels that are kept and wrong all the same."""


def voxel_counts(
    uncertainty: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
) -> list[dict[str, int]]:
    """Count voxels, errors and foreground at each level of uncertainty.

    Args:
        uncertainty: [Z, H, W], see :func:`rfss_core.quality.evidence.uncertainty_map`.
        labels: pseudo-label [Z, H, W].
        truth: the expert's label map [Z, H, W].

    Returns:
        One row a level: ``level``, ``voxels``, ``errors``, ``foreground``.
    """
    levels = uncertainty // (256 // LEVELS)

    def count(chosen: npt.NDArray[np.bool_]) -> list[int]:
        return [int(number) for number in np.bincount(levels[chosen], minlength=LEVELS)]

    columns = zip(count(np.ones(labels.shape, np.bool_)), count(labels != truth), count(labels > 0), strict=True)
    return [
        {"level": level, "voxels": voxels, "errors": errors, "foreground": foreground}
        for level, (voxels, errors, foreground) in enumerate(columns)
    ]


def voxel_curve(rows: Sequence[Mapping[str, int]]) -> tuple[VoxelPoint, ...]:
    """Sum the counts of the held-out cases into a curve.

    Args:
        rows: of :func:`voxel_counts`, of any number of cases.

    Returns:
        One point a level, rising; empty without rows.
    """
    if not rows:
        return ()
    sums = np.zeros((LEVELS, 3))
    for row in rows:
        sums[int(row["level"])] += [row["voxels"], row["errors"], row["foreground"]]
    above = sums[::-1].cumsum(axis=0)[::-1]
    voxels, errors, foreground = np.maximum(sums.sum(axis=0), 1)
    return tuple(
        VoxelPoint(
            level / LEVELS,
            float(above[level, 0] / voxels),
            float(above[level, 2] / foreground),
            float(above[level, 1] / errors),
            float((sums[:, 1].sum() - above[level, 1]) / max(voxels - above[level, 0], 1)),
        )
        for level in range(LEVELS)
    )

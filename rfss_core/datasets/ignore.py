"""Ignored voxels: those that a training must not learn from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError

IGNORE = "ignore"
"""Name of the class of voxels that a training must not learn from."""


def ignore_value(classes: Mapping[int, str]) -> int:
    """Return the label value of :data:`IGNORE`: the one above all others, where nnU-Net wants it.

    Args:
        classes: label value to name.

    Raises:
        InputError: there is no value left.
    """
    value = max(classes, default=0) + 1
    if value > 255:
        raise InputError("classes reach up to 255, so no value is left for ignored voxels; go on without `ignore`")
    return value


def check_level(level: float) -> None:
    """Refuse a level of uncertainty that means nothing.

    Raises:
        InputError: the level is not above 0 and at most 1.
    """
    if not 0 < level <= 1:
        raise InputError(f"ignore must lie above 0 and be at most 1, got {level:g}; 0.5 ignores about the boundary")


def ignored(uncertainty: npt.NDArray[np.uint8], level: float) -> npt.NDArray[np.bool_]:
    """Return which voxels are at least as uncertain as ``level``, above 0 to 1.

    Args:
        uncertainty: uint8, 0 (sure) to 255, see :func:`rfss_core.quality.evidence.uncertainty_map`.
        level: share of 255.
    """
    mask: npt.NDArray[np.bool_] = uncertainty >= np.ceil(255 * level)
    return mask

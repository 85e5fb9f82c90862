"""Ignored voxels of an export."""

from __future__ import annotations

from collections.abc import Mapping

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
        raise InputError("classes reach up to 255, so no value is left for ignored voxels; export without --ignore")
    return value

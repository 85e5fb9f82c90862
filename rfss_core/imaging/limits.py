"""Limits: what a header may declare before anything is decompressed."""

from __future__ import annotations

import math

from rfss_core.errors import GeometryError
from rfss_core.settings import ImagingSettings


def check_voxels(name: str, shape: tuple[int, ...], settings: ImagingSettings) -> None:
    """Refuse shapes that are empty or larger than ``settings.max_voxels``.

    Args:
        name: the file's name, for the message.
        shape: declared sizes in voxels, colours left out.
        settings: ``max_voxels`` is read.

    Raises:
        GeometryError: a size below 1 (``bad_shape``), or too many voxels (``too_large``).
    """
    sides = " x ".join(str(size) for size in shape)
    if any(size < 1 for size in shape):
        raise GeometryError(f"{name}: the header declares {sides} voxels; export the image again", reason="bad_shape")
    voxels = math.prod(shape)
    if voxels > settings.max_voxels:
        raise GeometryError(
            f"{name}: the header declares {sides} = {voxels} voxels, more than imaging.max_voxels "
            f"({settings.max_voxels}); crop it, or raise the limit if the file is genuine",
            reason="too_large",
        )

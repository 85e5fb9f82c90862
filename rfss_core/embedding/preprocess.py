"""From slices to what DINOv2 was trained on: fitted size, three channels, ImageNet statistics."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from rfss_core.embedding.slices import Slice
from rfss_core.errors import GeometryError

VERSION = 1
"""Raised with every change that alters an embedding; part of an embedder's digest."""

MAX_ASPECT = 4.0
"""Longest side in units of the short one. Longer slices are squeezed, since the tokens grow with the area."""

_MEAN = torch.tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1)
_STD = torch.tensor((0.229, 0.224, 0.225)).reshape(3, 1, 1)


def fitted_shape(height: int, width: int, short_side: int, patch: int) -> tuple[int, int]:
    """Return the size at which a slice is embedded.

    The short side becomes ``short_side`` and the other follows the aspect, each rounded to the nearest positive
    multiple of ``patch`` (DINOv2 takes any such size: its position code is interpolated).

    Args:
        height: rows of the slice.
        width: columns of the slice.
        short_side: wanted pixels of the short side.
        patch: pixels of a patch's side.

    Returns:
        (rows, columns) in pixels.

    Raises:
        GeometryError: a side without pixels.
    """
    if min(height, width) < 1:
        raise GeometryError(f"a slice of {height} x {width} pixels cannot be embedded")
    shortest = min(height, width)
    sides = [min(side / shortest, MAX_ASPECT) * short_side for side in (height, width)]
    rows, columns = (max(1, int(side / patch + 0.5)) * patch for side in sides)
    return rows, columns


def preprocess(image: Slice, shape: tuple[int, int]) -> torch.Tensor:
    """Resize one slice and normalise it.

    Bicubic with antialias, as DINOv2's own preprocessing, clipped to [0, 1] where the kernel overshoots.

    Args:
        image: float32 [H, W] or [H, W, 3] in [0, 1].
        shape: rows and columns wanted.

    Returns:
        float32 [3, rows, columns] with ImageNet's mean and standard deviation taken out.
    """
    # A copy: torch warns about arrays that are not writeable, as those of a support set are.
    pixels = torch.from_numpy(image.copy())
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if tuple(pixels.shape[1:]) != shape:
        pixels = interpolate(pixels[None], size=shape, mode="bicubic", align_corners=False, antialias=True)[0]
    return (pixels.clamp(0, 1).expand(3, -1, -1) - _MEAN) / _STD

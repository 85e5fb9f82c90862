"""Slices of any size on a canvas of one size, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rfss_core.training.architecture import MULTIPLE


@dataclass(frozen=True)
class Canvas:
    """The input grid of a network. A slice that is larger is shrunk, its aspect kept; a smaller one is padded."""

    height: int
    width: int

    @classmethod
    def around(cls, shapes: list[tuple[int, int]], longest: int, least: int = MULTIPLE) -> Canvas:
        """Return the smallest canvas that holds slices of these shapes, none longer than ``longest`` pixels.

        Args:
            shapes: (height, width) of the slices.
            longest: larger slices are shrunk.
            least: of each side of the canvas; more than ``longest`` is margin.
        """
        fitted = [_scaled(shape, longest / max(shape)) for shape in shapes]
        sides = (max(least, MULTIPLE * math.ceil(max(shape[axis] for shape in fitted) / MULTIPLE)) for axis in (0, 1))
        return cls(*sides)

    def fitted(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that a slice of ``shape`` takes on the canvas."""
        return _scaled(shape, min(self.height / shape[0], self.width / shape[1]))

    def image(self, pixels: npt.NDArray[Any], channels: int) -> Tensor:
        """Put a slice onto the canvas.

        Args:
            pixels: [H, W] or [H, W, 3].
            channels: 1 or 3; grey slices are repeated, coloured ones averaged.

        Returns:
            float32 [channels, height, width] with the slice's mean 0 and deviation 1, surrounded by its least value.
        """
        planes = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        planes = planes[None] if planes.ndim == 2 else planes.permute(2, 0, 1)
        if len(planes) != channels:
            planes = planes.mean(0, keepdim=True).expand(channels, -1, -1)
        size = self.fitted((planes.shape[1], planes.shape[2]))
        if size != planes.shape[1:]:
            planes = interpolate(planes[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        planes = (planes - planes.mean()) / (planes.std(correction=0) + 1e-6)
        return pad(planes, self._margins(size), value=float(planes.min()))

    def labels(self, mask: npt.NDArray[np.uint8]) -> Tensor:
        """Put a label map [H, W] onto the canvas: uint8 [height, width], 0 around it."""
        plane = torch.from_numpy(np.ascontiguousarray(mask))
        size = self.fitted((plane.shape[0], plane.shape[1]))
        if size != plane.shape:
            plane = interpolate(plane[None, None], size=size, mode="nearest-exact")[0, 0]
        return pad(plane, self._margins(size))

    def native(self, planes: Tensor, shape: tuple[int, int]) -> Tensor:
        """Take planes [C, height, width] back to a slice's own grid, [C, H, W]."""
        rows, columns = self.fitted(shape)
        left, _, top, _ = self._margins((rows, columns))
        planes = planes[:, top : top + rows, left : left + columns]
        if (rows, columns) == shape:
            return planes
        return interpolate(planes[None], size=shape, mode="bilinear", align_corners=False)[0]

    def _margins(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        rows, columns = self.height - size[0], self.width - size[1]
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _scaled(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    if factor >= 1:
        return shape
    # Rounding down keeps the result inside the canvas; a slice of one row stays one row.
    return max(1, int(shape[0] * factor + 1e-6)), max(1, int(shape[1] * factor + 1e-6))

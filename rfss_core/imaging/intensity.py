"""Intensity: from scanner values to [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import PixelError
from rfss_core.settings import ImagingSettings

_SAMPLE = 4_000_000
"""Percentiles are taken over about this many values at most."""


@dataclass(frozen=True)
class IntensityWindow:
    """The intensities, in the source's units, that become 0 and 1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise PixelError(
                f"an intensity window needs low < high, got {self.low} and {self.high}; set imaging.window",
                reason="constant_image",
            )


def estimate_window(pixels: npt.NDArray[Any], settings: ImagingSettings) -> IntensityWindow:
    """Return the window of one volume: the configured CT window, else robust percentiles of its values.

    Colour volumes have one window over all channels, so that hues stay. Above 4 million values a fixed,
    evenly spread sample is used, so the result depends on the pixels alone.

    Args:
        pixels: [Z, H, W] or [Z, H, W, 3], any real dtype, finite.
        settings: ``window`` and ``percentiles`` are read.

    Raises:
        PixelError: all values are the same (``constant_image``).
    """
    if settings.window is not None:
        centre, width = settings.window
        return IntensityWindow(centre - width / 2, centre + width / 2)
    values = pixels.reshape(-1)
    step = max(1, math.ceil(values.size / _SAMPLE))
    # A step that shares a factor with a side would visit some columns only.
    while step > 1 and math.gcd(step, values.size) > 1:
        step += 1
    low, high = (float(value) for value in np.percentile(values[::step], settings.percentiles))
    if not low < high:
        # Mostly background: the percentiles fall on one value.
        low, high = float(values.min()), float(values.max())
    return IntensityWindow(low, high)


def normalise(pixels: npt.NDArray[Any], window: IntensityWindow) -> npt.NDArray[np.float32]:
    """Map intensities linearly to [0, 1], clipped.

    Args:
        pixels: any shape, any real dtype.
        window: what becomes 0 and 1.

    Returns:
        float32 of the same shape.
    """
    scaled = pixels.astype(np.float32)
    scaled -= np.float32(window.low)
    scaled /= np.float32(window.high - window.low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)

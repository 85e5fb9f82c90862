"""The one form in which slices reach the models: float32 in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import GeometryError, PixelError

Slice = npt.NDArray[np.float32]
"""float32 [H, W] or [H, W, 3] in [0, 1]."""


def as_slice(image: npt.ArrayLike, name: str = "image") -> Slice:
    """Check one slice and bring it to float32 in [0, 1].

    Args:
        image: [H, W] or [H, W, 3]; floats in [0, 1], bool, or uint8, which is divided by 255.
        name: what to call the slice in error messages.

    Returns:
        float32 array of the same shape; the input itself where it already fits.

    Raises:
        GeometryError: not [H, W] or [H, W, 3], or without pixels.
        PixelError: not numbers, not finite, or outside [0, 1].
    """
    array: npt.NDArray[Any] = np.asarray(image)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
        raise GeometryError(
            f"{name} has shape {array.shape}; give one slice, [H, W] or [H, W, 3] (volumes go slice by slice)"
        )
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind not in "fb":
        raise PixelError(f"{name} has dtype {array.dtype}; scale it to floats in [0, 1] (rfss_core.imaging.normalise)")
    result = array.astype(np.float32, copy=False)
    low, high = float(result.min()), float(result.max())
    # A NaN makes minimum and maximum NaN, and every comparison with it false.
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PixelError(f"{name} holds NaN or infinite pixels; replace them before use")
    if low < 0 or high > 1:
        raise PixelError(
            f"{name} has pixels from {low:g} to {high:g}; scale it to [0, 1] (rfss_core.imaging.normalise)"
        )
    return result

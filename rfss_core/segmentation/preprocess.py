"""Slices and masks on their way into the network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from rfss_core.errors import PixelError
from rfss_core.segmentation.batching import send

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Logits of a mask's pixels in SAM 2: 20 m - 10, close to 0 and 1 after a sigmoid.
MASK_SCALE, MASK_BIAS = 20.0, -10.0
_READERS = 8


def prepare_image(image: npt.NDArray[Any], size: int) -> Tensor:
    """Turn a slice into the network's input.

    As the official loader does (``sam2.utils.misc.load_video_frames``): Pillow's bicubic resize to a square, aspect
    ignored; ImageNet statistics. Unlike it, nothing is rounded to 8 bits on the way.

    Args:
        image: [H, W] or [H, W, 3] in [0, 1].
        size: N.

    Returns:
        float32 [3, N, N], standardised.

    Raises:
        PixelError: another shape, or NaN or infinite values.
    """
    array = np.asarray(image, dtype=np.float32)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise PixelError(
            f"a slice must be [H, W] or [H, W, 3], got shape {array.shape}; split volumes into slices first"
        )
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise PixelError(
            f"the slice holds {bad} NaN or infinite pixels; replace them or set imaging.non_finite to 'fill'",
            reason="non_finite",
        )
    planes = [array] if array.ndim == 2 else [array[..., channel] for channel in range(3)]
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BICUBIC))
        for plane in planes
    ]
    stack = torch.from_numpy(np.stack(resized)).clamp_(0.0, 1.0).expand(3, -1, -1)
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    return (stack - mean) / std


def prepare_images(images: Sequence[npt.NDArray[Any]], size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Bring a batch of slices to the device as the network's input; see :func:`prepare_image`.

    Args:
        images: slices.
        size: N.
        device: where the network computes.
        dtype: its arithmetic.

    Returns:
        [B, 3, N, N].
    """
    if device.type == "cpu":
        return torch.stack([prepare_image(image, size) for image in images]).to(dtype)
    # Pillow lets go of the interpreter while it resizes; one after another, slices would keep an accelerator waiting.
    with ThreadPoolExecutor(min(_READERS, len(images))) as pool:
        prepared = list(pool.map(lambda image: prepare_image(image, size), images))
    return send(torch.stack(prepared), device).to(dtype)


def prepare_mask(mask: npt.NDArray[Any], size: int, *, harden: bool) -> Tensor:
    """Bring a native binary mask to the network's input size (bilinear, antialiased).

    Args:
        mask: [H, W], 0 or 1 (or bool).
        size: N.
        harden: threshold at 0.5, as the official predictor; else each pixel keeps the share of it that the mask covers,
            so that structures thinner than a pixel survive.

    Returns:
        float32 [1, N, N] in [0, 1].
    """
    native = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    if native.shape[-2:] == (size, size):
        return native[0]
    resized = interpolate(native, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return (resized >= 0.5).float()[0] if harden else resized.clamp_(0.0, 1.0)[0]


def round_trip(mask: Tensor) -> Tensor:
    """Send masks through the official predictor's detour over a quarter of the size, and binarise them.

    ``SAM2Base._use_mask_as_output`` shrinks a support's mask (as logits) to N / 4 and ``propagate_in_video_preflight``
    enlarges it again before the memory encoder sees it. Structures of a few pixels vanish on the way.

    Args:
        mask: float [B, 1, N, N], 0 or 1.

    Returns:
        float32 [B, 1, N, N], 0 or 1.
    """
    size = mask.shape[-1]
    logits = mask.float() * MASK_SCALE + MASK_BIAS
    low = interpolate(logits, size=(size // 4, size // 4), mode="bilinear", align_corners=False, antialias=True)
    high = interpolate(low, size=(size, size), mode="bilinear", align_corners=False)
    return (high > 0).float()


def to_native(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize low-resolution logits to a slice's own grid, as the official predictor does (bilinear).

    Args:
        logits: float32 [C, h, w].
        shape: (H, W).

    Returns:
        float32 [C, H, W].
    """
    if tuple(logits.shape[-2:]) == shape:
        return logits
    return interpolate(logits[None], size=shape, mode="bilinear", align_corners=False)[0]

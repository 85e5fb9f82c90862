"""Slices and masks on their way into the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from rfss_core.errors import PixelError
from rfss_core.segmentation.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    prepare_image,
    prepare_mask,
    round_trip,
    to_native,
)


def official_loader(image: np.ndarray, size: int) -> np.ndarray:
    """``sam2.utils.misc._load_img_as_tensor`` and the normalisation after it, for an 8-bit image in memory."""
    pixels = np.array(Image.fromarray(image).convert("RGB").resize((size, size)))
    standard = (pixels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return standard.transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(100, 140), (64, 64), (300, 40), (50, 60, 3)])
def test_images_are_loaded_as_the_official_loader_does_up_to_8_bit_rounding(shape: tuple[int, ...]) -> None:
    # Smooth as scans are: on pure noise Pillow's 8-bit path also clips the overshoot between its two passes.
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 2, axes=(0, 1))
    eight_bit = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    ours = prepare_image(eight_bit.astype(np.float32) / 255, 64).numpy()
    assert np.abs(ours - official_loader(eight_bit, 64)).max() < 2 / 255 / min(IMAGENET_STD)


@pytest.mark.parametrize("shape", [(4,), (4, 5, 2), (0, 5), (2, 3, 4, 3)])
def test_shapes_that_are_no_slice_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PixelError, match="split volumes"):
        prepare_image(np.zeros(shape, np.float32), 32)


def test_hard_masks_are_thresholded_and_soft_ones_keep_their_area() -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[20:21, 10:100] = 1
    hard, soft = (prepare_mask(mask, 32, harden=harden) for harden in (True, False))
    assert set(np.unique(hard)) <= {0.0, 1.0}
    assert not hard.any()
    assert float(soft.sum()) * 16 == pytest.approx(90, rel=0.05)


def test_masks_of_the_networks_size_pass_unchanged() -> None:
    mask = (np.random.default_rng(0).random((32, 32)) > 0.5).astype(np.uint8)
    for harden in (True, False):
        np.testing.assert_array_equal(prepare_mask(mask, 32, harden=harden)[0], mask)


@pytest.mark.parametrize(("side", "kept"), [(2, (0.0, 0.0)), (6, (0.1, 0.8)), (32, (0.95, 1.05))])
def test_the_official_round_trip_erodes_small_squares(side: int, kept: tuple[float, float]) -> None:
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 101 : 101 + side, 101 : 101 + side] = 1
    share = float(round_trip(mask).sum()) / side**2
    assert kept[0] <= share <= kept[1]


def test_logits_come_back_on_the_native_grid() -> None:
    logits = torch.randn(2, 16, 16)
    assert to_native(logits, (30, 50)).shape == (2, 30, 50)
    assert to_native(logits, (16, 16)) is logits

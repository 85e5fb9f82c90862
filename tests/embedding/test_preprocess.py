"""Preprocessing against its own rules and against the hub's processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from rfss_core.embedding.preprocess import MAX_ASPECT, fitted_shape, preprocess
from rfss_core.errors import GeometryError

sides = st.integers(1, 3000)


@given(sides, sides, st.sampled_from([56, 112, 224, 518]), st.sampled_from([7, 14, 16]))
def test_the_short_side_fits_and_the_aspect_stays(height: int, width: int, short: int, patch: int) -> None:
    rows, columns = fitted_shape(height, width, short, patch)
    assert rows % patch == columns % patch == 0
    assert abs(min(rows, columns) - short) <= patch / 2
    wanted = min(max(height, width) / min(height, width), MAX_ASPECT) * short
    assert abs(max(rows, columns) - wanted) <= patch / 2
    assert (rows <= columns) == (height <= width) or rows == columns


@given(sides, sides)
def test_turning_the_slice_turns_the_shape(height: int, width: int) -> None:
    assert fitted_shape(height, width, 112, 14) == fitted_shape(width, height, 112, 14)[::-1]


def test_a_slice_without_pixels_is_refused() -> None:
    with pytest.raises(GeometryError, match="0 x 5"):
        fitted_shape(0, 5, 112, 14)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(0, 2**31))
def test_pixels_come_out_normalised_and_finite(height: int, width: int, colour: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((height, width, 3) if colour else (height, width), dtype=np.float32)
    shape = fitted_shape(height, width, 56, 14)
    result = preprocess(image, shape)
    assert result.shape == (3, *shape)
    assert result.dtype == torch.float32
    undone = result * torch.tensor((0.229, 0.224, 0.225)).reshape(3, 1, 1) + torch.tensor(
        (0.485, 0.456, 0.406)
    ).reshape(3, 1, 1)
    assert undone.min() > -1e-5
    assert undone.max() < 1 + 1e-5
    if not colour:
        assert torch.allclose(undone[0], undone[1], atol=1e-6)


def test_it_agrees_with_the_hubs_processor() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    image = np.asarray(small.resize((160, 160), Image.Resampling.BICUBIC))
    processor = BitImageProcessorPil(
        size={"shortest_edge": 112},
        do_center_crop=False,
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=False,
    )
    theirs = torch.as_tensor(np.asarray(processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]))
    ours = preprocess(image.astype(np.float32) / 255, (112, 112))
    # Theirs rounds to 8 bits after the resize: one step is 1 / (255 x 0.224).
    assert (ours - theirs).abs().max() < 1.5 / (255 * 0.224)

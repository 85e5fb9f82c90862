"""Half precision rounds weights and activations, never places; a batch reaches the device as each slice alone would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rfss_core.presets import Preset
from rfss_core.segmentation.conversion import build_network
from rfss_core.segmentation.loading import load_adapter
from rfss_core.segmentation.meta_adapter import MetaAdapter
from rfss_core.segmentation.official import build_predictor
from rfss_core.segmentation.preprocess import prepare_image, prepare_images
from rfss_core.segmentation.transformers_adapter import TransformersAdapter

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_position_codes_are_computed_in_float32(preset: Preset, dtype: torch.dtype) -> None:
    exact, half = (
        load_adapter(preset.segmentation_model, None, CPU, arithmetic).adapter for arithmetic in (torch.float32, dtype)
    )
    assert isinstance(exact, TransformersAdapter)
    assert isinstance(half, TransformersAdapter)
    assert torch.equal(exact._image_wide_position.to(dtype), half._image_wide_position)
    for name in ("image_position", "memory_position"):
        assert torch.equal(getattr(exact.memory_attention, name), getattr(half.memory_attention, name))
    points = torch.tensor([[[3.0, 61.0], [40.5, 17.0]]])
    labels = torch.tensor([[1, 0]])
    code = [adapter.embed_points(points, labels)[0].float() for adapter in (exact, half)]
    torch.testing.assert_close(*code, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("dtype", HALVES)
def test_both_adapters_place_points_alike_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    predictor = build_predictor("t", "2.1", 128)
    network = build_network(predictor.state_dict(), 128)
    ours, theirs = TransformersAdapter(network, CPU, dtype), MetaAdapter(predictor, CPU, dtype)
    points, labels = torch.tensor([[[3.0, 61.0], [100.5, 17.0]]]), torch.tensor([[1, 0]])
    mine, official = ours.embed_points(points, labels)[0][:, 0], theirs.embed_points(points, labels)[0]
    torch.testing.assert_close(mine.float(), official.float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_batch_is_its_slices_whatever_way_they_come(toys: Any, dtype: torch.dtype) -> None:
    images = [toys.draw(seed, (30 + seed, 50))[0] for seed in range(5)]
    batch = prepare_images(images, 64, CPU, dtype)
    assert torch.equal(batch, torch.stack([prepare_image(image, 64).to(dtype) for image in images]))
    # torch's "meta" device stands for an accelerator: everything but the numbers.
    far = prepare_images(images, 64, torch.device("meta"), dtype)
    assert (far.shape, far.dtype, far.device.type) == (batch.shape, dtype, "meta")


def test_a_bad_slice_in_a_batch_for_an_accelerator_is_still_refused(toys: Any) -> None:
    images = [toys.draw(seed)[0].copy() for seed in range(3)]
    images[1][0, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN or infinite pixels"):
        prepare_images(images, 64, torch.device("meta"), torch.float32)

"""The point-prompt baseline: points from the ground truth, and the official predictor's masks for them."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from hypothesis import settings as examples
from hypothesis.extra.numpy import arrays

from rfss_core.errors import LabelError
from rfss_core.presets import Preset
from rfss_core.segmentation.conversion import build_network
from rfss_core.segmentation.loading import LoadedAdapter
from rfss_core.segmentation.official import build_predictor
from rfss_core.segmentation.points import PointPromptSegmenter, load_point_segmenter, sample_points
from rfss_core.segmentation.preprocess import prepare_image
from rfss_core.segmentation.transformers_adapter import TransformersAdapter
from rfss_core.settings import SegmentationSettings


@examples(deadline=None)
@given(arrays(np.bool_, (7, 9)).filter(np.any), strategies.integers(1, 3), strategies.integers(0, 3))
def test_points_lie_where_their_labels_say(mask: np.ndarray, positive: int, negative: int) -> None:
    points, labels = sample_points(mask, positive, negative, np.random.default_rng(0))
    columns, rows = points.astype(int).T
    np.testing.assert_array_equal(mask[rows, columns], labels == 1)
    assert (labels == 1).sum() == min(positive, mask.sum())
    assert (labels == 0).sum() == min(negative, (~mask).sum())
    assert len({tuple(point) for point in points}) == len(points)


@pytest.mark.parametrize(("positive", "negative"), [(1, 0), (2, 0), (1, 1), (2, 2)])
def test_parity_of_point_prompts_with_the_official_predictor(toys: Any, positive: int, negative: int) -> None:
    torch.manual_seed(0)
    predictor = build_predictor("t", "2.1", 128)
    with torch.no_grad():
        predictor.no_mem_embed.copy_(torch.randn_like(predictor.no_mem_embed))
        predictor.sam_mask_decoder.pred_obj_score_head.layers[2].bias.add_(1.0)
    adapter = TransformersAdapter(build_network(predictor.state_dict(), 128), torch.device("cpu"), torch.float32)
    # The single-mask path of the official network follows its own setting.
    adapter.model.mask_decoder.dynamic_multimask_via_stability = False
    query, truth = toys.draw(1)
    ours = PointPromptSegmenter(
        LoadedAdapter(adapter, "x", trained=False),
        SegmentationSettings(device="cpu"),
        positive=positive,
        negative=negative,
        seed=0,
    )
    drawn: list[Any] = []

    def record(*arguments: Any) -> Any:
        drawn.append(sample_points(*arguments))
        return drawn[-1]

    with patch("rfss_core.segmentation.points.sample_points", record):
        result = ours.segment([query], [truth], [1])[0]
    frames = (prepare_image(query, 128)[None], *query.shape)
    with patch("sam2.sam2_video_predictor.load_video_frames", return_value=frames):
        state = predictor.init_state("")
    official = predictor.add_new_points_or_box(state, 0, 1, points=drawn[0][0], labels=drawn[0][1])[2]
    np.testing.assert_allclose(result.logits[0], official[0, 0].numpy(), atol=1e-3)


def test_absent_classes_stay_absent_and_the_draw_is_reproducible(toys: Any, preset: Preset) -> None:
    query, truth = toys.draw(2, square=False)
    settings = SegmentationSettings(device="cpu", object_score_threshold=0.0)
    one, two = (
        load_point_segmenter(settings, preset, positive=2, negative=2).segment([query], [truth], [1, 3])[0]
        for _ in range(2)
    )
    assert not (one.labels == 3).any()
    np.testing.assert_array_equal(one.logits, two.logits)


def test_a_label_map_of_another_size_is_refused(toys: Any, preset: Preset) -> None:
    query, truth = toys.draw(2)
    with pytest.raises(LabelError, match="slice 0"):
        load_point_segmenter(SegmentationSettings(device="cpu"), preset).segment([query], [truth[1:]], [1])

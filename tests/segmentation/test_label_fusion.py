"""Label fusion is a plain vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays

from rfss_core.errors import SupportError
from rfss_core.presets import PRESETS
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.label_fusion import LabelFusionSegmenter
from rfss_core.settings import SegmentationSettings


class Masks:
    """A support set of label maps alone."""

    def __init__(self, masks: list[np.ndarray]) -> None:
        self.masks = masks
        self.ids = [str(index) for index in range(len(masks))]
        self.classes = {1: "a", 2: "b"}
        self.digest = ""

    def __len__(self) -> int:
        return len(self.masks)

    def image(self, index: int) -> np.ndarray:
        return np.zeros(self.masks[index].shape, np.float32)

    def mask(self, index: int) -> np.ndarray:
        return self.masks[index]


def fuse(toys: Any, masks: list[np.ndarray], shape: tuple[int, int] = (4, 5)) -> Any:
    found = [toys.Found.of(*range(len(masks)))]
    return LabelFusionSegmenter().segment([np.zeros(shape, np.float32)], found, Masks(masks))[0]


@settings(deadline=None, max_examples=40)
@given(arrays(np.uint8, (5, 4, 5), elements=strategies.integers(0, 2)))
def test_every_pixel_takes_a_label_with_the_most_votes(toys: Any, masks: np.ndarray) -> None:
    labels = fuse(toys, list(masks)).labels
    votes = np.stack([(masks == value).sum(axis=0) for value in range(3)])
    np.testing.assert_array_equal(np.take_along_axis(votes, labels[None].astype(int), axis=0)[0], votes.max(axis=0))


@settings(deadline=None, max_examples=40)
@given(arrays(np.uint8, (4, 4, 5), elements=strategies.integers(0, 2)), strategies.permutations(range(4)))
def test_the_order_of_neighbours_does_not_matter(toys: Any, masks: np.ndarray, order: list[int]) -> None:
    one, other = fuse(toys, list(masks)), fuse(toys, [masks[index] for index in order])
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.object_score, other.object_score)
    np.testing.assert_allclose(one.predicted_iou, other.predicted_iou, rtol=1e-6)


def test_unanimous_neighbours_are_copied_with_full_agreement(toys: Any) -> None:
    mask = np.array([[0, 1, 1, 0, 2]] * 4, np.uint8)
    result = fuse(toys, [mask] * 3)
    np.testing.assert_array_equal(result.labels, mask)
    np.testing.assert_array_equal(result.predicted_iou, [1, 1])
    np.testing.assert_allclose(result.object_score, np.log(4))


def test_an_absent_class_has_a_negative_score_and_perfect_agreement(toys: Any) -> None:
    result = fuse(toys, [np.zeros((4, 5), np.uint8)] * 3)
    assert not result.labels.any()
    np.testing.assert_allclose(result.object_score, -np.log(4))
    np.testing.assert_array_equal(result.predicted_iou, [1, 1])


def test_masks_are_resized_to_the_query_without_new_labels(toys: Any) -> None:
    result = fuse(toys, [np.kron(np.eye(3, dtype=np.uint8) * 2, np.ones((4, 4), np.uint8))] * 3, shape=(6, 24))
    np.testing.assert_array_equal(result.labels, np.kron(np.eye(3, dtype=np.uint8) * 2, np.ones((2, 8), np.uint8)))
    assert result.logits.shape == (2, 6, 24)


def test_an_empty_support_set_is_refused(toys: Any) -> None:
    with pytest.raises(SupportError, match="empty"):
        LabelFusionSegmenter().segment([np.zeros((4, 5), np.float32)], [toys.Found.of(0)], Masks([]))


def test_settings_choose_it() -> None:
    assert isinstance(
        load_segmenter(SegmentationSettings(segmenter="label-fusion"), PRESETS["tiny"]), LabelFusionSegmenter
    )

"""Class-wise support sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, strategies

from rfss_core.presets import Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.selection import choose_supports
from rfss_core.settings import SegmentationSettings


@given(
    strategies.lists(strategies.integers(0, 50), unique=True),
    strategies.sets(strategies.integers(0, 50)),
    strategies.integers(1, 12),
    strategies.floats(0, 1),
)
def test_choices_are_the_nearest_of_each_kind_in_order(
    candidates: list[int], holders: set[int], count: int, share: float
) -> None:
    chosen = choose_supports(candidates, holders.__contains__, count, share)
    assert len(chosen) == min(count, len(candidates))
    assert chosen == [index for index in candidates if index in chosen]
    for kind in (True, False):
        available = [index for index in candidates if (index in holders) is kind]
        taken = [index for index in chosen if (index in holders) is kind]
        assert taken == available[: len(taken)]
    wanted = round(count * share)
    negatives = sum(index not in holders for index in chosen)
    positives_left = sum(index in holders for index in candidates) > len(chosen) - negatives
    if positives_left:
        assert negatives <= wanted


def test_each_class_gets_its_own_supports(toys: Any, preset: Preset, settings: SegmentationSettings) -> None:
    support = toys.shapes(6, without_square=(0, 1, 2))
    own = settings.model_copy(update={"class_supports": 2, "absent_share": 0.0})
    result = load_segmenter(own, preset).segment(toys.queries[:1], [toys.Found.of(0, 1, 2, 3, 4, 5)], support)[0]
    plain = load_segmenter(settings, preset)
    discs = plain.segment(toys.queries[:1], [toys.Found.of(0, 1)], support, classes=[1])[0]
    squares = plain.segment(toys.queries[:1], [toys.Found.of(3, 4)], support, classes=[3])[0]
    assert result.logits is not None
    assert discs.logits is not None
    assert squares.logits is not None
    np.testing.assert_allclose(result.logits[0], discs.logits[0], atol=1e-4)
    np.testing.assert_allclose(result.logits[1], squares.logits[0], atol=1e-4)

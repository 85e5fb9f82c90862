"""Merging classes: laws that hold for any logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays

from rfss_core.segmentation.merging import ABSENT_LOGIT, gate, merge, soft_aggregation

PLANES = arrays(np.float32, (3, 2, 4), elements=strategies.floats(-20, 20, width=32))


@settings(deadline=None)
@given(PLANES)
def test_logits_and_exclusive_give_the_same_labels(planes: np.ndarray) -> None:
    logits = torch.from_numpy(planes)
    np.testing.assert_array_equal(merge(logits, "logits")[0], merge(logits, "exclusive")[0])


@settings(deadline=None)
@given(PLANES)
def test_exclusive_leaves_one_object_a_pixel(planes: np.ndarray) -> None:
    assert int((merge(torch.from_numpy(planes), "exclusive")[1] > 0).sum(dim=0).max()) <= 1


@settings(deadline=None)
@given(PLANES)
def test_softmax_never_loses_a_pixel_to_the_background_that_logits_keep(planes: np.ndarray) -> None:
    logits = torch.from_numpy(planes)
    kept = merge(logits, "logits")[0] > 0
    assert bool((merge(logits, "softmax")[0][kept] > 0).all())


@pytest.mark.parametrize("value", [-8.0, -0.5, 0.0, 0.5, 8.0])
def test_soft_aggregation_of_one_class_is_the_definition(value: float) -> None:
    p = 1 / (1 + np.exp(-value))
    background = 1 - p
    expected = np.log(p / (1 - p)) - np.log(background / (1 - background))
    got = float(soft_aggregation(torch.full((1, 1, 1), value))[0, 0, 0])
    assert got == pytest.approx(expected, abs=1e-4)


def test_two_unsure_classes_push_the_background_away_under_softmax_only() -> None:
    logits = torch.full((2, 1, 1), -0.4)
    assert int(merge(logits, "logits")[0]) == 0
    assert int(merge(logits, "softmax")[0]) == 1


@pytest.mark.parametrize("rule", ["logits", "softmax", "exclusive"])
def test_gated_classes_never_win(rule: str) -> None:
    logits = torch.full((2, 3, 3), 5.0)
    gated = gate(logits, torch.tensor([-1.0, 1.0]), 0.0)
    assert float(gated[0].max()) == ABSENT_LOGIT
    labels, merged = merge(gated, rule)  # type: ignore[arg-type]
    assert bool((labels == 2).all())
    assert bool(torch.isfinite(merged).all())
    assert gate(logits, torch.tensor([-1.0, 1.0]), None) is logits

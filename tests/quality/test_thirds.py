"""Dice by thirds of the labelled slices."""

from __future__ import annotations

import numpy as np
import pytest

from rfss_core.errors import GeometryError
from rfss_core.quality import THIRDS, case_metrics, dice_by_third

CLASSES = {1: "outer", 2: "inner"}


def heart(depth: int = 9, empty: int = 2) -> np.ndarray:
    """Return a volume whose structure narrows with z, between empty slices."""
    truth = np.zeros((depth + 2 * empty, 40, 40), np.uint8)
    rows, columns = np.mgrid[:40, :40]
    for z in range(depth):
        distance = np.hypot(rows - 20, columns - 20)
        truth[empty + z][distance < 16 - z] = 1
        if z < depth - 3:
            truth[empty + z][distance < 6 - z / 2] = 2
    return truth


def test_truth_is_perfect_and_absent_classes_are_left_out() -> None:
    truth = heart()
    found = dice_by_third(truth, truth, CLASSES)
    assert list(found) == list(THIRDS)
    assert found["large end"] == found["middle"] == {"outer": 1.0, "inner": 1.0}
    assert found["small end"] == {"outer": 1.0}


def test_the_order_of_slices_does_not_matter() -> None:
    truth = heart()
    prediction = truth.copy()
    prediction[2:5] = 0
    found = dice_by_third(prediction, truth, CLASSES)
    assert found == dice_by_third(prediction[::-1], truth[::-1], CLASSES)
    assert (found["large end"]["outer"], found["middle"]["outer"]) == (0.0, 1.0)


def test_thirds_pool_to_the_whole() -> None:
    truth = heart(depth=10)
    prediction = np.roll(truth, 2, axis=1)
    found = dice_by_third(prediction, truth, {1: "outer"})
    whole = case_metrics((prediction == 1).astype(np.uint8), (truth == 1).astype(np.uint8), {1: "outer"}, (1, 1, 1))[
        0
    ].dice
    values = [part["outer"] for part in found.values()]
    assert min(values) <= whole <= max(values)


def test_volumes_too_flat_and_shapes_that_differ() -> None:
    assert dice_by_third(heart(depth=2), heart(depth=2), CLASSES) == {}
    with pytest.raises(GeometryError):
        dice_by_third(heart(depth=4), heart(depth=5), CLASSES)

"""Decision about a case or a slice: accept, review or reject, and what accepting more of them costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rfss_core.quality.prediction import CalibrationPoint
from rfss_core.settings import QualitySettings

Decision = Literal["accept", "review", "reject"]


def decide(predicted: float | None, lower: float | None, settings: QualitySettings) -> Decision:
    """Decide what happens to a pseudo-label.

    Accepting claims something about a case that nobody looked at, so it takes the lower bound: half of the cases whose
    prediction just reaches a threshold lie below it. Rejecting takes the prediction itself.

    Args:
        predicted: predicted Dice, or ``None``.
        lower: lower bound on Dice at ``settings.confidence``, or ``None``.
        settings: the thresholds.

    Returns:
        ``accept`` when ``lower`` reaches ``accept_dice``; ``reject`` when ``predicted`` is below ``reject_dice``;
        ``review`` otherwise, and always where there is no prediction.
    """
    if predicted is None or lower is None:
        return "review"
    if lower >= settings.accept_dice:
        return "accept"
    return "reject" if predicted < settings.reject_dice else "review"


@dataclass(frozen=True)
class AcceptancePoint:
    """What accepting the best-rated held-out cases would give."""

    least_lower: float
    """Cases whose lower bound reaches this are accepted."""
    accepted: float
    """Share of the held-out cases that are, above 0 to 1."""
    dice: float
    """Their mean Dice."""
    reached: float
    """Share of them whose Dice reaches ``accept_dice``."""


def acceptance_curve(points: Sequence[CalibrationPoint], settings: QualitySettings) -> tuple[AcceptancePoint, ...]:
    """Return coverage against quality: how good the accepted cases are, the more of them are accepted.

    Args:
        points: cross-validated predictions on held-out cases.
        settings: ``accept_dice``.

    Returns:
        One point for each different lower bound, the highest first; the last accepts all.
    """
    ordered = sorted(points, key=lambda point: (-point.lower, point.case))
    curve = []
    for number, point in enumerate(ordered, 1):
        if number < len(ordered) and ordered[number].lower == point.lower:
            continue
        dice = [one.dice for one in ordered[:number]]
        reached = sum(value >= settings.accept_dice for value in dice)
        curve.append(AcceptancePoint(point.lower, number / len(ordered), math.fsum(dice) / number, reached / number))
    return tuple(curve)

"""Decision about a case: accept, review or reject."""

from __future__ import annotations

from typing import Literal

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

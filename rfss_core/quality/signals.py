"""Signals of a pseudo-label's quality that need no expert label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError

FOREGROUND = "foreground_fraction"
"""Name of the signal that is 0 for an empty pseudo-label."""


@dataclass(frozen=True)
class SegmentedCase:
    """What segmentation leaves behind about one case; Z slices, C classes, k neighbours a slice."""

    labels: npt.NDArray[np.uint8]
    """Pseudo-label [Z, H, W]."""
    classes: Sequence[int]
    """Label values in the order of the C columns below."""
    object_score: npt.NDArray[np.floating[Any]]
    """SAM 2's object score as a logit [Z, C]; NaN where the segmenter has none."""
    predicted_iou: npt.NDArray[np.floating[Any]]
    """SAM 2's own estimate of the mask's IoU [Z, C]; NaN where the segmenter has none."""
    distances: npt.NDArray[np.floating[Any]]
    """Squared L2 distance of the retrieved supports [Z, k], nearest first; not finite where fewer were found."""
    fusion: npt.NDArray[np.uint8] | None = None
    """Label fusion's map of the same case [Z, H, W], for comparison."""


def case_signals(case: SegmentedCase) -> dict[str, float]:
    """Reduce a segmented case to the signals from which its Dice is predicted.

    Args:
        case: the pseudo-label and what the models said about it.

    Returns:
        Signals by name, NaN where one does not apply: ``predicted_iou`` (mean over slices and classes with
        foreground), ``object_margin`` (mean distance of the object score's logit from 0, over all slices and
        classes), ``nearest_distance`` and ``mean_distance`` (squared L2, means over slices), ``foreground_fraction``,
        ``slice_overlap`` (mean Dice of the label maps of adjacent slices, per class) and ``fusion_agreement`` (mean
        Dice against label fusion, where given).

    Raises:
        InputError: an array's shape contradicts the label map's.
    """
    depth, count = case.labels.shape[0], len(case.classes)
    for name, array in (("object_score", case.object_score), ("predicted_iou", case.predicted_iou)):
        if array.shape != (depth, count):
            raise InputError(
                f"{name} has shape {array.shape}, but {depth} slices and {count} classes need one value each"
            )
    if case.distances.ndim != 2 or case.distances.shape[0] != depth:
        raise InputError(f"distances have shape {case.distances.shape}, but must be [{depth}, k]")
    if case.fusion is not None and case.fusion.shape != case.labels.shape:
        raise InputError(f"label fusion has shape {case.fusion.shape}, the pseudo-label {case.labels.shape}")
    masks = np.stack([case.labels == value for value in case.classes])  # [C, Z, H, W]
    shown = masks.any(axis=(2, 3)).T  # [Z, C]
    signals = {
        "predicted_iou": _mean(np.where(shown, case.predicted_iou, np.nan)),
        "object_margin": _mean(np.abs(case.object_score)),
        "nearest_distance": _mean(case.distances[:, :1]),
        "mean_distance": _mean(case.distances),
        FOREGROUND: float(np.count_nonzero(case.labels) / case.labels.size),
        "slice_overlap": _mean(_dice(masks[:, :-1], masks[:, 1:], axis=(2, 3))),
    }
    if case.fusion is not None:
        voted = np.stack([case.fusion == value for value in case.classes])
        signals["fusion_agreement"] = _mean(_dice(masks, voted, axis=(1, 2, 3)))
    return signals


def _dice(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], axis: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return Dice over ``axis``, NaN where both are empty."""
    total = first.sum(axis=axis) + second.sum(axis=axis)
    both = (first & second).sum(axis=axis)
    dice: npt.NDArray[np.float64] = np.full(total.shape, np.nan)
    np.divide(2.0 * both, total, out=dice, where=total > 0)
    return dice


def _mean(values: npt.NDArray[Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if finite.size else float("nan")

"""What one segmented slice tells about its own mask, class by class: the raw material of quality signals.

Everything here falls out of segmentation: no second forward pass. Signals of cases (signals.py) are sums and means of
these columns, so that another signal needs no new segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rfss_core.retrieval import Neighbours
from rfss_core.segmentation import Segmentation

STABILITY_OFFSET = 1.0
"""Logits by which the threshold moves in the stability score, as in SAM's automatic mask generator."""

_REACH = 30.0

COUNTS = ("voxels", "core", "wide", "soft_both", "soft_total", "entropy", "fusion_voxels", "fusion_both")
SCORES = ("object_score", "predicted_iou", "vote_iou", "nearest_distance", "mean_distance")
EVIDENCE_COLUMNS = ("case_id", "slice", "class", *SCORES, *COUNTS)
"""Columns of an evidence table, one row a slice and class.

``object_score``, ``predicted_iou``: SAM 2's own. ``vote_iou``: mean IoU of the retrieved masks with their majority
vote. ``nearest_distance``, ``mean_distance``: squared L2 to the retrieved slices. ``voxels``: pixels of the class.
``core``, ``wide``: pixels whose logit exceeds 1 and -1, after the object-score gate. ``soft_both``: sum of the class's
probability over its mask; ``soft_total``: over the slice, plus ``voxels``. ``entropy``: sum of the binary entropies in
nats. ``fusion_voxels``, ``fusion_both``: pixels of the class in label fusion's map, and in both maps."""


@dataclass(frozen=True)
class SegmentedSlice:
    """One slice's result beside label fusion's."""

    found: Segmentation
    vote: Segmentation
    """Label fusion of the same neighbours."""
    neighbours: Neighbours


def evidence_table(
    case_id: str, slices: Sequence[SegmentedSlice], classes: Sequence[int], threshold: float | None
) -> pd.DataFrame:
    """Tabulate the evidence of one case.

    Args:
        case_id: its id.
        slices: Z slices in order.
        classes: label values, rising.
        threshold: the object-score gate, see ``SegmentationSettings.object_score_threshold``.

    Returns:
        Columns as in :data:`EVIDENCE_COLUMNS`, ordered by slice, then class. Without logits (baselines) the columns
        that need them are NaN.
    """
    rows: list[tuple[Any, ...]] = []
    for z, one in enumerate(slices):
        logits = gated_logits(one.found, threshold)
        for plane, value in enumerate(classes):
            mask, voted = one.found.labels == value, one.vote.labels == value
            served = np.isin(one.neighbours.indices, one.neighbours.for_class(value))
            distances = one.neighbours.distances[served]
            soft = (np.nan,) * 5 if logits is None else _soft_counts(logits[plane], mask)
            rows.append(
                (
                    case_id,
                    z,
                    value,
                    float(one.found.object_score[plane]),
                    float(one.found.predicted_iou[plane]),
                    float(one.vote.predicted_iou[plane]),
                    float(distances.min()) if len(distances) else np.nan,
                    float(distances.mean()) if len(distances) else np.nan,
                    float(np.count_nonzero(mask)),
                    *soft,
                    float(np.count_nonzero(voted)),
                    float(np.count_nonzero(mask & voted)),
                )
            )
    return pd.DataFrame(rows, columns=list(EVIDENCE_COLUMNS))


def uncertainty_map(found: Segmentation, threshold: float | None) -> npt.NDArray[np.uint8] | None:
    """Return how unsure the segmenter is of each pixel's label.

    One minus the margin between the two likeliest labels, background among them, after a softmax over the gated logits
    (margin sampling: Scheffer, Decomain, Wrobel, IDA 2001). It is the segmenter's own opinion; what a level is worth
    is measured on the held-out cases (see :func:`rfss_core.quality.voxels.voxel_curve`).

    Args:
        found: one slice.
        threshold: the object-score gate.

    Returns:
        uint8 [H, W], 0 (sure) to 255 (two labels tie); None without logits.
    """
    logits = gated_logits(found, threshold)
    if logits is None:
        return None
    planes = np.concatenate([np.zeros((1, *logits.shape[1:]), np.float32), logits])
    planes = np.exp(planes - planes.max(axis=0))
    planes /= planes.sum(axis=0)
    planes.partition(len(planes) - 2, axis=0)
    levels: npt.NDArray[np.uint8] = np.rint(255 * (1 - (planes[-1] - planes[-2]))).astype(np.uint8)
    return levels


def gated_logits(found: Segmentation, threshold: float | None) -> npt.NDArray[np.float32] | None:
    """Return logits [C, H, W] within -30 to 30, those of classes that the object-score gate closes at -30.

    Args:
        found: one slice.
        threshold: the gate; None lets everything through.
    """
    if found.logits is None:
        return None
    logits = np.clip(found.logits, -_REACH, _REACH).astype(np.float32)
    if threshold is not None:
        logits[~(found.object_score > threshold)] = -_REACH
    return logits


def _soft_counts(logits: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> tuple[float, ...]:
    # Far below 0 a pixel adds nothing; most of a slice is.
    near = logits > -10
    margin, inside = logits[near].astype(np.float64), mask[near]
    probability = 1 / (1 + np.exp(-margin))
    entropy = np.logaddexp(0, margin) - margin * probability
    return (
        float(np.count_nonzero(margin > STABILITY_OFFSET)),
        float(np.count_nonzero(margin > -STABILITY_OFFSET)),
        float(probability[inside].sum()),
        float(probability.sum() + np.count_nonzero(mask)),
        float(entropy.sum()),
    )

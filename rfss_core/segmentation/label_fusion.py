"""Label fusion: the majority vote of the retrieved masks, the floor that every model must beat.

The oldest multi-atlas rule (Heckemann et al., "Automatic anatomical brain MRI segmentation combining label propagation
and decision fusion", NeuroImage 2006), without any registration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from rfss_core.digest import digest_json
from rfss_core.segmentation.segmenter import (
    Neighbours,
    Segmentation,
    Slice,
    Supports,
    check_request,
    read_support,
    split_volumes,
)


class LabelFusionSegmenter:
    """Votes pixel by pixel; ties go to the background first, then to the lowest class value.

    Its scores measure agreement, not confidence learned from data. ``object_score`` is the log-odds of the share of
    neighbours that have the class (one vote added to each side, so that it stays finite). ``predicted_iou`` is the mean
    IoU between the fused mask and each neighbour's (1 where both are empty). ``logits`` are the log-odds of each
    pixel's share of votes, with the same added votes.
    """

    trained = True

    @property
    def digest(self) -> str:
        """sha256 of the rule's name and version."""
        return digest_json({"segmenter": "label-fusion", "version": 1})

    def segment(
        self,
        queries: Sequence[Slice],
        neighbours: Sequence[Neighbours],
        support: Supports,
        *,
        classes: Sequence[int] | None = None,
        volumes: Sequence[int] | None = None,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices by vote, each for itself; see :meth:`rfss_core.segmentation.segmenter.Segmenter.segment`."""
        values = check_request(queries, neighbours, support, classes)
        split_volumes(len(queries), volumes)
        needed = sorted({int(index) for found in neighbours for index in found.indices})
        masks = {index: read_support(support, index)[1] for index in needed}
        return [
            _vote([masks[int(index)] for index in found.indices], query.shape[:2], values, keep_logits=keep_logits)
            for query, found in zip(queries, neighbours, strict=True)
        ]


def _vote(
    masks: list[npt.NDArray[np.uint8]], shape: tuple[int, ...], values: list[int], *, keep_logits: bool
) -> Segmentation:
    resized = np.stack([_nearest(mask, shape) for mask in masks])
    planes = np.stack([resized == value for value in values], axis=1)
    votes = planes.sum(axis=0)
    others = len(masks) - votes.sum(axis=0)
    winner = np.argmax(np.concatenate([others[None], votes]), axis=0)
    labels = np.array([0, *values], dtype=np.uint8)[winner]
    fused = np.stack([labels == value for value in values])
    intersection = (planes & fused).sum(axis=(2, 3))
    union = (planes | fused).sum(axis=(2, 3))
    iou = np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean(axis=0)
    present = planes.any(axis=(2, 3)).sum(axis=0)
    return Segmentation(
        labels=labels,
        object_score=_log_odds(present, len(masks)),
        predicted_iou=iou.astype(np.float32),
        logits=_log_odds(votes, len(masks)) if keep_logits else None,
    )


def _nearest(mask: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    if mask.shape == shape:
        return mask
    plane = torch.from_numpy(np.ascontiguousarray(mask))[None, None]
    resized: npt.NDArray[np.uint8] = interpolate(plane, size=(shape[0], shape[1]), mode="nearest-exact")[0, 0].numpy()
    return resized


def _log_odds(votes: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.float32]:
    return np.log((votes + 1.0) / (total - votes + 1.0)).astype(np.float32)

"""A trained network as a segmenter: the supervised baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rfss_core.digest import digest_json
from rfss_core.embedding.slices import as_slice
from rfss_core.errors import SupportError
from rfss_core.segmentation.lanes import Lanes
from rfss_core.segmentation.segmenter import Neighbours, Segmentation, Slice, Supports, check_request, split_volumes
from rfss_core.training.model import SupervisedModel


class SupervisedSegmenter:
    """Segments slices with a trained network; the neighbours serve nobody and are only checked.

    ``logits`` are the log-odds of each class against all others. ``object_score`` is a class's highest logit.
    ``predicted_iou`` is the IoU that the network expects of its own mask: intersection and union of the mask with the
    predicted probabilities; of an empty mask it is one minus the highest probability.

    On the CPU labels do not depend on threads or on the company of a slice.

    Args:
        model: the trained network.
        device: where it computes.
    """

    trained = True

    def __init__(self, model: SupervisedModel, device: torch.device) -> None:
        self.spec = model.spec
        self._network = model.network.to(device)
        self._device = device
        self._weights = model.digest
        self._lanes = Lanes(device)

    @property
    def digest(self) -> str:
        """sha256 of architecture and weights."""
        return digest_json({"segmenter": self.spec.architecture, "weights": self._weights, "version": 1})

    def segment(
        self,
        queries: Sequence[Slice],
        neighbours: Sequence[Neighbours],
        support: Supports,
        *,
        classes: Sequence[int] | None = None,
        keep_logits: bool = True,
        volumes: Sequence[int] | None = None,
    ) -> list[Segmentation]:
        """Label slices; see :meth:`rfss_core.segmentation.segmenter.Segmenter.segment`.

        ``volumes`` change nothing: every slice stands alone.

        Raises:
            SupportError: also for a class that the network was not trained on.
        """
        values = check_request(queries, neighbours, support, classes)
        split_volumes(len(queries), volumes)
        if missing := [value for value in values if value not in self.spec.classes]:
            raise SupportError(
                f"the {self.spec.architecture} was trained on classes {list(self.spec.classes)}, not on {missing[0]}; "
                "train it on a support set that has the class"
            )
        return self._label(queries, values, keep_logits=keep_logits)

    def label(self, queries: Sequence[Slice]) -> list[Segmentation]:
        """Label slices with every class of the network, no support set at hand; without logits.

        Args:
            queries: float32 [H, W] or [H, W, 3] in [0, 1], of any sizes.

        Raises:
            PixelError: NaN or infinite pixels.
        """
        return self._label(queries, list(self.spec.classes), keep_logits=False)

    def _label(self, queries: Sequence[Slice], values: list[int], *, keep_logits: bool) -> list[Segmentation]:
        slices = [as_slice(query, f"query {row}") for row, query in enumerate(queries)]
        return self._lanes.map(lambda query: self._one(query, values, keep_logits=keep_logits), slices)

    @torch.inference_mode()
    def _one(self, query: Slice, values: list[int], *, keep_logits: bool) -> Segmentation:
        shape = (query.shape[0], query.shape[1])
        image = self.spec.canvas.image(query, self.spec.channels)[None].to(self._device)
        planes = self.spec.canvas.native(self._network(image)[0].float(), shape)
        chosen = [0, *(1 + self.spec.classes.index(value) for value in values)]
        winner = planes[chosen].argmax(0)
        probability = planes.softmax(0)[chosen[1:]]
        logits = torch.stack([_log_odds(planes, plane) for plane in chosen[1:]])
        masks = torch.stack([winner == plane for plane in range(1, len(chosen))])
        return Segmentation(
            labels=np.array([0, *values], dtype=np.uint8)[winner.cpu().numpy()],
            object_score=logits.amax((1, 2)).cpu().numpy(),
            predicted_iou=_expected_iou(masks, probability).cpu().numpy(),
            logits=logits.cpu().numpy() if keep_logits else None,
        )


def _log_odds(planes: Tensor, plane: int) -> Tensor:
    others = torch.cat([planes[:plane], planes[plane + 1 :]])
    return planes[plane] - others.logsumexp(0)


def _expected_iou(masks: Tensor, probability: Tensor) -> Tensor:
    inside = (probability * masks).sum((1, 2))
    union = masks.sum((1, 2)) + (probability * ~masks).sum((1, 2))
    return torch.where(masks.any(2).any(1), inside / union.clamp(min=1e-6), 1 - probability.amax((1, 2)))

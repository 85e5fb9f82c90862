"""SAM 2 with point prompts drawn from the ground truth: the comparison of Table I of Zhao et al. (arXiv:2408.08813).

It needs the very labels that it is measured against, so it is a yardstick and no way to label data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rfss_core.digest import digest_array, digest_json
from rfss_core.errors import LabelError
from rfss_core.presets import Preset
from rfss_core.segmentation.adapter import Decoded, ImageFeatures
from rfss_core.segmentation.lanes import Lanes
from rfss_core.segmentation.loading import LoadedAdapter, choose_device, load_adapter
from rfss_core.segmentation.merging import ABSENT_LOGIT, gate, merge
from rfss_core.segmentation.preprocess import prepare_image, to_native
from rfss_core.segmentation.segmenter import Segmentation, Slice
from rfss_core.settings import SegmentationSettings


def sample_points(
    mask: npt.NDArray[np.bool_], positive: int, negative: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Draw prompt points uniformly from inside and outside a mask.

    Args:
        mask: bool [H, W] with at least one pixel set.
        positive: points inside.
        negative: points outside; fewer where the outside has fewer pixels.
        rng: source of randomness.

    Returns:
        (x, y) in pixels, float32 [n, 2], and labels int32 [n] (1 inside, 0 outside).
    """
    parts = []
    for region, count in ((mask, positive), (~mask, negative)):
        rows, columns = np.nonzero(region)
        chosen = rng.choice(len(rows), min(count, len(rows)), replace=False)
        parts.append(np.stack([columns[chosen], rows[chosen]], axis=1))
    labels = np.repeat([1, 0], [len(parts[0]), len(parts[1])])
    return np.concatenate(parts).astype(np.float32), labels.astype(np.int32)


class PointPromptSegmenter:
    """Segments each class of a slice from points drawn from its ground truth; classes that are not there stay absent.

    The network sees the single image as the official video predictor sees a prompted first frame: with the learned
    no-memory embedding, three masks for one point, one mask for more.

    Args:
        loaded: the network.
        settings: gate and merging.
        positive: points inside each class.
        negative: points outside it.
        seed: of the draw, together with the mask's content.
    """

    def __init__(
        self, loaded: LoadedAdapter, settings: SegmentationSettings, *, positive: int, negative: int, seed: int
    ) -> None:
        self.adapter = loaded.adapter
        self.trained = loaded.trained
        self.settings = settings
        self.positive = positive
        self.negative = negative
        self.seed = seed
        self._weights = loaded.digest
        self._lanes = Lanes(loaded.adapter.device)

    @property
    def digest(self) -> str:
        """sha256 of weights, points and the settings that decide labels."""
        return digest_json(
            {
                "segmenter": "sam2-points",
                "weights": self._weights,
                "dtype": self.settings.dtype,
                "points": [self.positive, self.negative, self.seed],
                "object_score_threshold": self.settings.object_score_threshold,
                "merging": self.settings.merging,
            }
        )

    def segment(
        self,
        queries: Sequence[Slice],
        truths: Sequence[npt.NDArray[Any]],
        classes: Sequence[int],
        *,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices from points of their own ground truth.

        Args:
            queries: slices, [H, W] or [H, W, 3] in [0, 1].
            truths: label map of each, [H, W].
            classes: class values to segment.
            keep_logits: return raw logits too; those of absent classes are ``ABSENT_LOGIT``.

        Returns:
            One segmentation a query, planes by ascending class value.

        Raises:
            LabelError: a label map of another size than its slice.
            PixelError: NaN or infinite pixels.
        """
        values = sorted(set(classes))
        for row, (query, truth) in enumerate(zip(queries, truths, strict=True)):
            if query.shape[:2] != truth.shape:
                raise LabelError(f"slice {row} is {query.shape[:2]} but its label map is {truth.shape}")
        pairs = list(zip(queries, truths, strict=True))
        return self._lanes.map(lambda pair: self._one(*pair, values, keep_logits=keep_logits), pairs)

    @torch.inference_mode()
    def _one(self, query: Slice, truth: npt.NDArray[Any], values: list[int], *, keep_logits: bool) -> Segmentation:
        adapter = self.adapter
        pixels = prepare_image(query, adapter.traits.image_size)[None].to(adapter.device, adapter.dtype)
        features = adapter.encode_image(pixels)
        conditioned = features.coarse + adapter.no_memory_embedding[:, None, None]
        planes = [self._plane(features, conditioned, truth == value) for value in values]
        shape = (query.shape[0], query.shape[1])
        raw = torch.cat([to_native(plane.logits, shape) for plane in planes])
        scores = torch.cat([plane.object_score for plane in planes])
        index, _ = merge(gate(raw, scores, self.settings.object_score_threshold), self.settings.merging)
        return Segmentation(
            labels=np.array([0, *values], dtype=np.uint8)[index.cpu().numpy()],
            object_score=scores.cpu().numpy(),
            predicted_iou=torch.cat([plane.predicted_iou for plane in planes]).cpu().numpy(),
            logits=raw.cpu().numpy() if keep_logits else None,
        )

    def _plane(self, features: ImageFeatures, conditioned: Tensor, mask: npt.NDArray[np.bool_]) -> Decoded:
        side = 4 * self.adapter.traits.grid
        if not mask.any():
            nothing = torch.full((1,), ABSENT_LOGIT, device=self.adapter.device)
            return Decoded(nothing.expand(1, side, side), torch.ones_like(nothing), nothing, conditioned[:, :, 0, 0])
        rng = np.random.default_rng([self.seed, int(digest_array(mask)[:8], 16)])
        coordinates, labels = sample_points(mask, self.positive, self.negative, rng)
        scale = self.adapter.traits.image_size / np.array(mask.shape[::-1], dtype=np.float32)
        points = torch.from_numpy(coordinates * scale)[None].to(self.adapter.device, self.adapter.dtype)
        return self.adapter.decode(
            features,
            conditioned,
            multimask=self.adapter.traits.multimask and len(labels) <= 1,
            points=(points, torch.from_numpy(labels)[None].to(self.adapter.device)),
        )


def load_point_segmenter(
    settings: SegmentationSettings, preset: Preset, *, positive: int = 1, negative: int = 0, seed: int = 0
) -> PointPromptSegmenter:
    """Build the point-prompt baseline on the model that settings and preset name.

    Args:
        settings: model, device, arithmetic, gate, merging.
        preset: named pair of models.
        positive: points inside each class: 1 or 2 in the paper.
        negative: points outside it: as many in the paper's second half of the table.
        seed: of the draw.

    Raises:
        ModelNotFoundError: no such model here or at the hub.
        ModelError: weights that cannot be used.
    """
    revision = settings.revision or (preset.segmentation_revision if settings.model is None else None)
    loaded = load_adapter(
        settings.model or preset.segmentation_model,
        revision,
        choose_device(settings.device),
        getattr(torch, settings.dtype),
    )
    return PointPromptSegmenter(loaded, settings, positive=positive, negative=negative, seed=seed)

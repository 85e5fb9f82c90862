"""Meta's ``SAM2VideoPredictor`` driven as the papers' public code drives it: the oracle and the yardstick.

One inference session a query: the supports are the first frames of a video with mask prompts, the query is its last
frame. Slow by design; nothing is shared between queries. Used by the parity tests and by the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from rfss_core.digest import digest_json
from rfss_core.segmentation.merging import merge
from rfss_core.segmentation.preprocess import prepare_image
from rfss_core.segmentation.segmenter import Neighbours, Segmentation, Slice, Supports, check_request, read_support

_CONFIGS = {"2.0": "configs/sam2/sam2_hiera_{}.yaml", "2.1": "configs/sam2.1/sam2.1_hiera_{}.yaml"}


def build_predictor(size: str, version: str, image_size: int = 1024) -> Any:
    """Build the official video predictor with random weights.

    Hole filling is off (it needs a CUDA kernel and is no part of the model); masks of prompted frames are binarised for
    the memory encoder, as the official ``build_sam2_video_predictor`` sets it for inference.

    Args:
        size: ``t``, ``s``, ``b+`` or ``l``.
        version: ``2.0`` or ``2.1``.
        image_size: N.

    Returns:
        A ``SAM2VideoPredictor`` on the CPU, in evaluation mode.
    """
    from sam2.build_sam import build_sam2_video_predictor

    return build_sam2_video_predictor(
        _CONFIGS[version].format(size),
        None,
        device="cpu",
        apply_postprocessing=False,
        hydra_overrides_extra=[
            f"++model.image_size={image_size}",
            "++model.binarize_mask_from_pts_for_mem_enc=true",
        ],
    )


def without_pointers(predictor: Any) -> None:
    """Switch object pointers off in an official predictor, in place."""
    predictor.use_obj_ptrs_in_encoder = False

    # Without pointers beside them the stored bfloat16 memories reach float32 layers, and the official code stops.
    def widen(_module: Any, _arguments: Any, named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        return (), {**named, "memory": named["memory"].float()}

    predictor.memory_attention.register_forward_pre_hook(widen, with_kwargs=True)


class OfficialSegmenter:
    """A segmenter around the official video predictor.

    Args:
        predictor: a ``SAM2VideoPredictor``.
    """

    trained = False

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor

    @property
    def digest(self) -> str:
        """sha256 of the segmenter's name; its weights are whatever the caller built."""
        return digest_json({"segmenter": "official"})

    @torch.inference_mode()
    def segment(
        self,
        queries: Sequence[Slice],
        neighbours: Sequence[Neighbours],
        support: Supports,
        *,
        classes: Sequence[int] | None = None,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices, one inference session each; its logits are gated by the object score.

        See :meth:`rfss_core.segmentation.segmenter.Segmenter.segment`.
        """
        values = check_request(queries, neighbours, support, classes)
        return [
            self._track(query, [int(index) for index in found.indices], support, values, keep_logits=keep_logits)
            for query, found in zip(queries, neighbours, strict=True)
        ]

    def _track(
        self, query: Slice, indices: list[int], support: Supports, values: list[int], *, keep_logits: bool
    ) -> Segmentation:
        predictor = self.predictor
        slices = [read_support(support, index) for index in indices]
        frames = torch.stack([prepare_image(image, predictor.image_size) for image in (*[s[0] for s in slices], query)])
        loaded = (frames.to(predictor.device), query.shape[0], query.shape[1])
        # init_state reads only files; its loader is replaced so that both sides see the same pixels.
        with patch("sam2.sam2_video_predictor.load_video_frames", return_value=loaded):
            state = predictor.init_state("frames in memory")
        for frame, (_, mask) in enumerate(slices):
            for value in values:
                predictor.add_new_mask(state, frame, value, mask == value)
        last = len(slices)
        with patch("sam2.sam2_video_predictor.tqdm", lambda steps, **_: steps):
            logits = next(
                masks[:, 0] for frame, _, masks in predictor.propagate_in_video(state, last, 1) if frame == last
            )
        outputs = [state["output_dict_per_obj"][row]["non_cond_frame_outputs"][last] for row in range(len(values))]
        scores: Tensor = torch.cat([output["object_score_logits"][0] for output in outputs])
        index, _ = merge(logits.float())
        return Segmentation(
            labels=np.array([0, *values], dtype=np.uint8)[index.cpu().numpy()],
            object_score=scores.float().cpu().numpy(),
            predicted_iou=np.full(len(values), np.nan, dtype=np.float32),
            logits=logits.float().cpu().numpy() if keep_logits else None,
        )

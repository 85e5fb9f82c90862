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
from rfss_core.segmentation.segmenter import (
    Neighbours,
    Segmentation,
    Slice,
    Supports,
    check_request,
    read_support,
    split_volumes,
)

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


@torch.no_grad()
def randomise(predictor: Any) -> None:
    """Give constant and nearly-zero parameters of an untrained predictor a random scale, so that no path is silent.

    A comparison of two implementations on plain random weights would forgive whatever hides behind a zero, and an
    absolute tolerance anything where logits are tiny.

    Args:
        predictor: from :func:`build_predictor`; changed in place. torch's global generator is the source.
    """
    for name, parameter in sorted(predictor.named_parameters()):
        if parameter.ndim == 1 or name.endswith(("pos_embed", "pos_embed_window")):
            parameter.add_(torch.randn_like(parameter) * torch.rand(()) * 0.3)
        elif parameter.shape[0] == 1 or name == "maskmem_tpos_enc":
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        elif name.startswith("memory_attention") and name.endswith(("q_proj.weight", "k_proj.weight")):
            # Untrained projections attend to everything alike, which would hide a wrong key.
            parameter.mul_(3.0)
        elif "output_hypernetworks_mlps" in name and name.endswith("layers.2.weight"):
            # Logits as large as a trained network's.
            parameter.mul_(30.0)


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
        volumes: Sequence[int] | None = None,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices, one inference session each; its logits are gated by the object score.

        See :meth:`rfss_core.segmentation.segmenter.Segmenter.segment`.
        """
        values = check_request(queries, neighbours, support, classes)
        split_volumes(len(queries), volumes)
        return [
            self.track([query], found, support, values, keep_logits=keep_logits)[0]
            for query, found in zip(queries, neighbours, strict=True)
        ]

    @torch.inference_mode()
    def track(
        self,
        queries: Sequence[Slice],
        found: Neighbours,
        support: Supports,
        values: Sequence[int],
        *,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices as the last frames of one video, so that each remembers those before it.

        Args:
            queries: slices of one size, in the order of the video.
            found: the supports, which are its first frames.
            support: where they are looked up.
            values: class values to segment.
            keep_logits: return logits too, gated by the object score.

        Returns:
            One segmentation a slice.
        """
        predictor = self.predictor
        slices = [read_support(support, int(index)) for index in found.indices]
        images = [*[image for image, _ in slices], *queries]
        frames = torch.stack([prepare_image(image, predictor.image_size) for image in images])
        loaded = (frames.to(predictor.device), queries[0].shape[0], queries[0].shape[1])
        # init_state reads only files; its loader is replaced so that both sides see the same pixels.
        with patch("sam2.sam2_video_predictor.load_video_frames", return_value=loaded):
            state = predictor.init_state("frames in memory")
        for frame, (_, mask) in enumerate(slices):
            for value in values:
                predictor.add_new_mask(state, frame, value, mask == value)
        first = len(slices)
        with patch("sam2.sam2_video_predictor.tqdm", lambda steps, **_: steps):
            return [
                self._read(state, frame, masks[:, 0].float(), values, keep_logits=keep_logits)
                for frame, _, masks in predictor.propagate_in_video(state, first, len(queries))
            ]

    @staticmethod
    def _read(state: Any, frame: int, logits: Tensor, values: Sequence[int], *, keep_logits: bool) -> Segmentation:
        outputs = [state["output_dict_per_obj"][row]["non_cond_frame_outputs"][frame] for row in range(len(values))]
        scores: Tensor = torch.cat([output["object_score_logits"][0] for output in outputs])
        index, _ = merge(logits)
        return Segmentation(
            labels=np.array([0, *values], dtype=np.uint8)[index.cpu().numpy()],
            object_score=scores.float().cpu().numpy(),
            predicted_iou=np.full(len(values), np.nan, dtype=np.float32),
            logits=logits.cpu().numpy() if keep_logits else None,
        )

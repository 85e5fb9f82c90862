"""SegFormer as a network of ours: transformers' model from a configuration, no hub."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import SegformerConfig, SegformerForSemanticSegmentation

_HEADS = (1, 2, 5, 8)


class SegFormer(torch.nn.Module):
    """SegFormer (Xie et al., arXiv:2105.15203) with random weights; at width 16 it has the size of B0.

    Two things differ from the paper: no dropout and no stochastic depth, and group norm in the place of the head's
    batch norm. Both would make weights depend on the company and the order of slices. The logits, a quarter of the
    image's size, are brought to it bilinearly, as the paper does.

    Args:
        channels: of the image.
        planes: classes and the background.
        width: half of the channels of the first stage.
    """

    def __init__(self, channels: int, planes: int, width: int) -> None:
        super().__init__()
        # transformers takes the number of labels by the length of this mapping.
        config = SegformerConfig(
            num_channels=channels,
            id2label={plane: str(plane) for plane in range(planes)},
            hidden_sizes=[2 * width * heads for heads in _HEADS],
            num_attention_heads=list(_HEADS),
            decoder_hidden_size=16 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
        )
        self.model = SegformerForSemanticSegmentation(config)
        head: Any = self.model.decode_head
        head.batch_norm = torch.nn.GroupNorm(16, 16 * width)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, channels, H, W] to logits [N, planes, H, W]."""
        logits = cast("Tensor", self.model(pixel_values=images).logits)
        return interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)

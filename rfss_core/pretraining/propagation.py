"""An initialisation in which memory attention is label propagation from the first step.

The memory encoder passes the image features on and writes the mask into channels of its own; key and query
projections share one projection of the features; the value carries the mask; the output projection is the
identity. So a query token gathers the mask of the support tokens that look like it, and training starts from there
(measured: it learns far faster than from the plain start).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rfss_core.pretraining.conditioning import InContextSam2

MASK_CHANNELS = 16
"""Memory channels (of 64) that carry the mask; the others carry the image."""
SHARPNESS = 2.5
"""Standard deviation of the attention logits at the start."""
FEATURE_SCALE = 2.0
"""Standard deviation of a memory's image channels: above that of the position code, which is added to them."""


@torch.no_grad()
def initialise(model: Any, images: Tensor, seed: int = 0) -> None:
    """Initialise a ``Sam2VideoModel`` in place for training.

    Args:
        model: freshly built model.
        images: [B, S, S] in [0, 1] at the model's size, a few dozen varied ones, to set means and scales by.
        seed: seed of all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    _lecun(model, generator)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    features = InContextSam2(model).encode(images).coarse.flatten(2).transpose(1, 2).flatten(0, 1)
    # One scale for the pyramid's output, so that residual branches start on equal terms with it.
    gain = 1 / features.std()
    for convolution in model.vision_encoder.neck.convs:
        convolution.weight.mul_(gain)
        convolution.bias.mul_(gain)
    _propagate(model, features * gain, generator)


def _lecun(model: Any, generator: torch.Generator) -> None:
    # The hub's 0.02 is meant for widths of 768; these layers are 32 to 256 wide.
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.weight.shape[0]
            module.weight.normal_(0, math.sqrt(1 / fan_in), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.02 * math.sqrt(module.weight.shape[1]), generator=generator)
    model.shared_image_embedding.positional_embedding.normal_(0, 1, generator=generator)
    for block in model.vision_encoder.backbone.blocks:
        block.attn.proj.weight.mul_(0.5)
        block.mlp.proj_out.weight.mul_(0.5)
    for layer in model.memory_attention.layers:
        layer.self_attn.o_proj.weight.mul_(0.2)
        layer.linear2.weight.mul_(0.2)
    for fuser in model.memory_encoder.memory_fuser.layers:
        fuser.scale.fill_(1e-3)


def _propagate(model: Any, features: Tensor, generator: torch.Generator) -> None:
    channels, memory = model.hidden_dim, model.mem_dim
    image_channels = memory - MASK_CHANNELS
    half = channels * 3 // 4
    encoder = model.memory_encoder

    def orthonormal(rows: int, columns: int) -> Tensor:
        matrix: Tensor = torch.linalg.qr(torch.randn((columns, rows), generator=generator))[0]
        return matrix.T

    through = orthonormal(half, channels)
    seen = orthonormal(image_channels, half) @ through
    projected = features @ seen.T
    scale = FEATURE_SCALE / projected.std()

    encoder.feature_projection.weight.zero_()
    encoder.feature_projection.weight[:half, :, 0, 0] = through
    encoder.mask_downsampler.final_conv.weight[:half] = 0
    encoder.projection.weight.zero_()
    encoder.projection.weight[:image_channels, :half, 0, 0] = scale * (seen @ through.T)
    encoder.projection.weight[image_channels:, half:, 0, 0] = orthonormal(MASK_CHANNELS, channels - half)
    encoder.projection.bias.zero_()
    encoder.projection.bias[:image_channels] = -scale * projected.mean(0)

    normed = nn.functional.layer_norm(features, (channels,))
    asked = normed @ seen.T
    middle = asked.mean(0)
    stored = scale * (projected - projected.mean(0))
    sample = torch.randperm(len(asked), generator=generator)[:512]
    logits = (asked - middle)[sample] @ stored[sample].T / math.sqrt(channels)
    sharp = SHARPNESS / logits.std()
    slots = _slow_slots(channels, image_channels)
    for layer in model.memory_attention.layers:
        cross = layer.cross_attn_image
        for projection in (cross.q_proj, cross.k_proj, cross.v_proj, cross.o_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        cross.q_proj.weight[slots] = sharp * seen
        cross.q_proj.bias[slots] = -sharp * middle
        cross.k_proj.weight[slots, torch.arange(image_channels)] = 1.0
        cross.v_proj.weight[:, image_channels:] = orthonormal(MASK_CHANNELS, channels).T
        cross.o_proj.weight.copy_(torch.eye(channels))


def _slow_slots(channels: int, count: int) -> Tensor:
    """Return head channels whose rotary angle turns slowly, half of them for rows and half for columns.

    Fast channels would make equal features at different places look different.
    """
    axis = channels // 2
    last = torch.arange(axis - count // 2, axis)
    return torch.cat([last, axis + last])

"""An initialisation in which memory attention is label propagation from the first step.

The memory encoder passes the image features on and writes the mask into channels of its own; key and query
projections share one projection of the features; the value carries the mask; the output projection is the
identity. So a query token gathers the mask of the support tokens that look like it and lie near its place, the
decoder starts by reading that off, and training goes on from there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rfss_core.pretraining.conditioning import InContextSam2

MASK_CHANNELS = 16
"""Memory channels (of 64) that carry the mask; the others carry the image."""
SHARPNESS = 6.0
"""Standard deviation of the attention logits at the start."""
NEARNESS = 18.0
"""What the attention logit of two tokens at the same place gains at the start: retrieved slices are roughly aligned."""
CARRIED = 6.0
"""Distance in the attention's output between foreground and background, in standard deviations of the features."""
FEATURE_SCALE = 2.0
"""Standard deviation of a memory's image channels: above that of the position code, which is added to them."""


@torch.no_grad()
def initialise(model: Any, images: Tensor, masks: Tensor, seed: int = 0) -> None:
    """Initialise a ``Sam2VideoModel`` in place for training.

    Args:
        model: freshly built model.
        images: [G, n, S, S] in [0, 1] at the model's size, a few varied groups, to set means and scales by.
        masks: [G, n, S, S] of 0 and 1, to fit the decoder's first readout to.
        seed: seed of all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    _lecun(model, generator)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    context = InContextSam2(model)
    features = context.encode(images.flatten(0, 1)).coarse.flatten(2).transpose(1, 2).flatten(0, 1)
    # One scale for the pyramid's output, so that residual branches start on equal terms with it.
    gain = 1 / features.std()
    for convolution in model.vision_encoder.neck.convs:
        convolution.weight.mul_(gain)
        convolution.bias.mul_(gain)
    _propagate(model, features * gain, generator)
    _read_out(model, context, images, masks)


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
    for layer in model.mask_decoder.transformer.layers:
        layer.cross_attn_image_to_token.o_proj.weight.mul_(0.1)
    model.prompt_encoder.no_mask_embed.weight.mul_(0.1)
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
    carried = CARRIED / _mask_contrast(model)
    slots = _slow_slots(channels, image_channels)
    near = _fast_slots(channels)
    nearness = math.sqrt(NEARNESS * math.sqrt(channels) / len(near))
    for layer in model.memory_attention.layers:
        cross = layer.cross_attn_image
        for projection in (cross.q_proj, cross.k_proj, cross.v_proj, cross.o_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        cross.q_proj.weight[slots] = sharp * seen
        cross.q_proj.bias[slots] = -sharp * middle
        cross.k_proj.weight[slots, torch.arange(image_channels)] = 1.0
        # Equal constants in query and key, turned by the rotary code, sum to a bump over the distance of two tokens.
        cross.q_proj.bias[near] = nearness
        cross.k_proj.bias[near] = nearness
        cross.v_proj.weight[:, image_channels:] = carried * orthonormal(MASK_CHANNELS, channels).T
        cross.o_proj.weight.copy_(torch.eye(channels))


def _mask_contrast(model: Any) -> Tensor:
    """Return the distance between the mask channels of memories that are all foreground and all background."""
    size = int(model.config.image_size)
    scale, bias = model.config.sigmoid_scale_for_mem_enc, model.config.sigmoid_bias_for_mem_enc
    full = torch.stack([torch.full((1, size, size), scale + bias), torch.full((1, size, size), bias)])
    encoder = model.memory_encoder
    half = model.hidden_dim * 3 // 4
    written = nn.functional.conv2d(encoder.mask_downsampler(full), encoder.projection.weight)
    middle = written.shape[-1] // 2
    assert not encoder.mask_downsampler.final_conv.weight[:half].any()
    contrast: Tensor = torch.linalg.vector_norm(written[0, :, middle, middle] - written[1, :, middle, middle])
    return contrast


def _read_out(model: Any, context: InContextSam2, images: Tensor, masks: Tensor) -> None:
    """Let the decoder's masks start as the best linear reading of the conditioned features.

    Two channels of opposite sign survive each GELU, since GELU(z) - GELU(-z) = z.
    """
    groups, members = images.shape[:2]
    features = context.encode(images.flatten(0, 1))
    allow = (~torch.eye(members, dtype=torch.bool)).expand(groups, -1, -1)
    memories = context.remember(features, masks.flatten(0, 1), pointers=False)
    coarse = features.coarse.view(groups, members, *features.coarse.shape[1:])
    offsets = torch.zeros(groups, members)
    conditioned, _ = context.attend(coarse, features.position, memories, allow, offsets, masks.flatten(0, 1))
    tokens = conditioned.flatten(3).transpose(2, 3).flatten(0, 2)
    share = nn.functional.adaptive_avg_pool2d(masks.flatten(0, 1)[:, None], conditioned.shape[-1]).flatten()
    inputs = torch.cat([tokens, torch.ones(len(tokens), 1)], 1).double()
    # Foreground and background count the same, however small the foreground.
    weight = (share / share.sum() + (1 - share) / (1 - share).sum()).double()[:, None]
    moment = inputs.T @ (weight * inputs) + 1e-3 * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(moment, inputs.T @ (weight * (2 * share.double()[:, None] - 1)))[:, 0].float()

    decoder = model.mask_decoder
    for sign, channel in ((1.0, 0), (-1.0, 1)):
        decoder.upscale_conv1.weight[:, channel] = sign * 2 * solution[:-1, None, None]
        decoder.upscale_conv1.bias[channel] = sign * 2 * solution[-1]
        decoder.conv_s1.weight[channel] = 0
        decoder.upscale_conv2.weight[:, channel] = 0
        decoder.upscale_conv2.weight[0, channel] = sign
        decoder.upscale_conv2.weight[1, channel] = -sign
        decoder.conv_s0.weight[channel] = 0
        for head in decoder.output_hypernetworks_mlps:
            head.proj_out.bias[channel] = sign * 2
    for head in decoder.output_hypernetworks_mlps:
        head.proj_out.weight.mul_(0.2)


def _slow_slots(channels: int, count: int) -> Tensor:
    """Return head channels whose rotary angle turns slowly, half of them for rows and half for columns.

    Fast channels would make equal features at different places look different.
    """
    axis = channels // 2
    last = torch.arange(axis - count // 2, axis)
    return torch.cat([last, axis + last])


def _fast_slots(channels: int) -> Tensor:
    """Return the first channel of rotary pairs that turn by 1 down to about 0.1 radians a token, for both axes."""
    first = torch.arange(0, 2 * (channels // 16), 2)
    return torch.cat([first, channels // 2 + first])

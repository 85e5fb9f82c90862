"""An initialisation in which DINOv2's CLS token starts as a coarse description of the picture.

Patches start as a few cosine components of their pixels; every attention head lets CLS look at one block of patches
and write what it sees into channels of its own. So retrieval starts about as good as comparing thumbnails, which
takes a vision transformer from the plain start far longer to learn than a CPU has time for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

COMPONENTS = 6
"""Cosine components of a patch: mean, two slopes, three of second order."""
POSITION, FLAG = 6.0, 12.0
"""Norm of a patch's place and of the mark of CLS: above the content, so that layer norms hardly feel the content."""
FOCUS = 0.4
"""How firmly a head looks at its block."""


@torch.no_grad()
def initialise_glimpses(model: Any, images: Tensor, seed: int = 0) -> None:
    """Initialise a ``Dinov2WithRegistersModel`` in place for training.

    Channels are laid out as content, one-hot place, mark of CLS, then what each head of each layer saw.

    Args:
        model: freshly built model of at least ``grid^2 + 7 + 6 x heads x layers`` channels.
        images: [B, 3, S, S], standardised, S the model's own size: their statistics centre and scale the embedding.
        seed: of the small noise everywhere else.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02, generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
    config = model.config
    side = config.image_size // config.patch_size
    place = COMPONENTS
    flag = place + side * side
    first_slot = flag + 1
    _patches(model.embeddings, side, place, flag)
    per_layer = config.num_attention_heads
    blocks = _blocks(side, config.num_hidden_layers * per_layer)
    head_width = config.hidden_size // per_layer
    for depth, layer in enumerate(model.encoder.layer):
        attention, output = layer.attention, layer.attention.o_proj
        # Patches ask nothing, so that only CLS is written to in any particular way.
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_()
        layer.mlp.fc2.weight.mul_(0.2)
        for head in range(per_layer):
            rows = head * head_width
            number = depth * per_layer + head
            slot = first_slot + COMPONENTS * number
            width = min(head_width, side * side)
            attention.k_proj.weight[rows + torch.arange(width), place + torch.arange(width)] = 1.0
            attention.q_proj.weight[rows : rows + width, flag] = FOCUS * blocks[number][:width]
            attention.v_proj.weight[rows : rows + COMPONENTS] = 0
            attention.v_proj.weight[rows + torch.arange(COMPONENTS), torch.arange(COMPONENTS)] = 1.0
            output.weight[:, rows : rows + COMPONENTS] = 0
            output.weight[slot + torch.arange(COMPONENTS), rows + torch.arange(COMPONENTS)] = 1.0
    slots = torch.arange(first_slot, first_slot + COMPONENTS * len(blocks))
    _centre(model, images, slots)


def _patches(embeddings: Any, side: int, place: int, flag: int) -> None:
    projection: nn.Conv2d = embeddings.patch_embeddings.projection
    size = projection.weight.shape[-1]
    axis = (torch.arange(size) + 0.5) * math.pi / size
    cosine = torch.stack([torch.cos(order * axis) for order in range(3)])
    orders = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
    for channel, (row, column) in enumerate(orders[:COMPONENTS]):
        wave = cosine[row][:, None] * cosine[column][None]
        # Finer components are fainter in pictures; they may count as much.
        gain = 1.0 + 1.5 * (row + column)
        projection.weight[channel] = gain * wave / size**2 / projection.weight.shape[1]
    projection.weight[place:] = 0
    embeddings.cls_token.zero_()
    embeddings.cls_token[..., flag] = FLAG
    embeddings.position_embeddings.zero_()
    cells = torch.arange(side * side)
    embeddings.position_embeddings[0, 1 + cells, place + cells] = POSITION


def _blocks(side: int, count: int) -> Tensor:
    """Return indicator vectors [count, side * side]: a grid of blocks that covers the picture, then its middle."""
    cells = int(math.sqrt(count))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    blocks = [
        ((row * cells // side == y) & (column * cells // side == x)).flatten().float()
        for y in range(cells)
        for x in range(cells)
    ]
    middle = (row - (side - 1) / 2).abs().maximum((column - (side - 1) / 2).abs())
    blocks.extend((middle <= side / 4 - extra).flatten().float() for extra in range(count - len(blocks)))
    return torch.stack(blocks)


def _centre(model: Any, images: Tensor, slots: Tensor) -> None:
    described = model(pixel_values=images).last_hidden_state[:, 0]
    mean, deviation = described.mean(0), described.std(0)
    model.layernorm.weight.fill_(0.02)
    model.layernorm.bias.zero_()
    gain = 1 / deviation[slots].clamp(min=1e-3)
    model.layernorm.weight[slots] = gain
    model.layernorm.bias[slots] = -mean[slots] * gain

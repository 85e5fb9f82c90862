"""Memory attention over many queries, classes and shared supports at once.

The same numbers as SAM 2's memory attention (Ravi et al., arXiv:2408.00714; ``sam2/modeling/memory_attention.py``),
ordered so that nothing is computed twice: a support's keys and values are projected once for all queries that share
it, and the first self-attention, which knows neither class nor support, once for all classes of a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rfss_core.segmentation.adapter import AttentionWeights, LayerWeights, MemoryAttentionWeights, Traits
from rfss_core.segmentation.grouping import Group, Tactics, attend_in_groups, group_reduced, group_whole
from rfss_core.segmentation.reduction import ReducedMemories


class Rotary:
    """Axial rotary position code of an S x S grid (``compute_axial_cis`` of the official code).

    Args:
        grid: S.
        head_dim: width of one attention head.
        theta: base of the frequencies.
        device: where the tables live.
    """

    def __init__(self, grid: int, head_dim: int, theta: float, device: torch.device) -> None:
        quarter = head_dim // 4
        frequencies = theta ** -(torch.arange(0, head_dim, 4)[:quarter].float() / head_dim)
        cell = torch.arange(grid * grid)
        angles = torch.cat(
            [torch.outer((cell % grid).float(), frequencies), torch.outer((cell // grid).float(), frequencies)], dim=1
        )
        self.cosine = angles.cos().to(device)
        self.sine = angles.sin().to(device)

    def rotate(self, tokens: Tensor, cells: Tensor | None = None) -> Tensor:
        """Rotate pairs of channels by their cell's angles, in float32.

        Args:
            tokens: [..., n, head_dim].
            cells: int64 [n], where they lie, row by row; None: all S * S cells.
        """
        cosine, sine = (self.cosine, self.sine) if cells is None else (self.cosine[cells], self.sine[cells])
        even, odd = tokens.float().reshape(*tokens.shape[:-1], -1, 2).unbind(-1)
        turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
        return turned.flatten(-2).to(tokens.dtype)


def sine_code(positions: Tensor, dim: int) -> Tensor:
    """Return the 1-D sine position code of the Transformer (``get_1d_sine_pe``).

    Args:
        positions: float32 [n].
        dim: width of the code.

    Returns:
        float32 [n, dim].
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=positions.device)
    angles = positions[:, None] / 10000 ** (2 * (index // 2) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@dataclass(frozen=True)
class Recent:
    """What P pairs remember of the frames just before their query: non-conditioning memories."""

    spatial: Tensor
    """[P, r, S * S, M]: memories of the last r frames, the oldest first."""
    pointers: Tensor
    """[P, e, D]: object pointers of the last e frames, the newest first."""
    position: int
    """Frames between the last support and the query."""
    span: int
    """Frames over which the pointers' distances are normalised."""


class MemoryAttention:
    """Conditions query features on memories.

    Args:
        weights: parameters of the network's memory attention.
        traits: what the network is.
        device: where it computes.
        dtype: its arithmetic.
    """

    def __init__(
        self, weights: MemoryAttentionWeights, traits: Traits, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.weights = weights
        self.traits = traits
        self.dtype = dtype
        self.heads = traits.heads
        self.tactics = Tactics.of(device)
        head_dim = weights.layers[0].self_attention.query.out_features // traits.heads
        self.rotary = Rotary(traits.grid, head_dim, traits.rope_theta, device)
        self._temporal_positions = weights.temporal_positions.float()
        self._place = weights.memory_position.to(device)
        self._memory_position = self._place + self._temporal_positions[-1]
        self._image_position = weights.image_position.to(device, dtype)

    @torch.inference_mode()
    def start(self, coarse: Tensor) -> Tensor:
        """Run what no memory touches: the input's position code and the first layer's self-attention.

        Args:
            coarse: [Q, D, S, S].

        Returns:
            [Q, S * S, D], to be repeated for each class.
        """
        tokens = coarse.flatten(2).transpose(1, 2) + 0.1 * self._image_position
        return self._self_attention(self.weights.layers[0], tokens)

    @torch.inference_mode()
    def project(self, layer: int, memories: Tensor | ReducedMemories) -> tuple[Tensor, Tensor]:
        """Project spatial memories to keys (rotated) and values of one layer.

        Args:
            layer: which layer.
            memories: [U, S * S, M], or n tokens of reduced ones.

        Returns:
            keys and values, each [U, heads, S * S, D / heads] or [heads, n, D / heads].
        """
        attention = self.weights.layers[layer].cross_attention
        if isinstance(memories, ReducedMemories):
            tokens, cells, position = memories.tokens, memories.cells, self._memory_position[memories.cells]
        else:
            tokens, cells, position = memories, None, self._memory_position
        keys = self._split(attention.key((tokens.float() + position).to(self.dtype)))
        values = self._split(attention.value(tokens.to(self.dtype)))
        return self.rotary.rotate(keys, cells), values

    @torch.inference_mode()
    def pointer_tokens(self, pointers: Tensor, recent: Recent | None = None) -> tuple[Tensor, Tensor]:
        """Cut object pointers into tokens and give them their temporal position.

        The supports are the frames 0 to k - 1 of a video whose frame k is the query, as in the official order; in a
        volume, slices that were labelled before come between the two.

        Args:
            pointers: [P, k, D].
            recent: of a volume's slices, whose e pointers follow.

        Returns:
            tokens [P, (k + e) * D / M, M] and their positions [(k + e) * D / M, M].
        """
        k = pointers.shape[1]
        span = min(k + 1, self.traits.max_pointers) - 1
        frames = torch.arange(k, 0, -1, dtype=torch.float32, device=pointers.device)
        if recent is not None:
            span = recent.span
            newest = torch.arange(1, recent.pointers.shape[1] + 1, dtype=torch.float32, device=pointers.device)
            frames = torch.cat([frames + recent.position, newest])
            pointers = torch.cat([pointers, recent.pointers.to(pointers.dtype)], dim=1)
        pairs, count, width = pointers.shape
        parts = width // self.traits.memory_dim
        tokens = pointers.reshape(pairs, count * parts, self.traits.memory_dim)
        if not self.traits.pointer_positions:
            return tokens, torch.zeros_like(tokens[0])
        code = self.weights.pointer_position(sine_code(frames / span, width).to(self.dtype))
        return tokens, code.repeat_interleave(parts, dim=0)

    @torch.inference_mode()
    def condition(
        self,
        started: Tensor,
        memories: Tensor | ReducedMemories,
        supports: Tensor,
        pointers: Tensor | None,
        recent: Recent | None = None,
    ) -> Tensor:
        """Run the rest of the memory attention for P pairs of a query and a class.

        Args:
            started: [P, S * S, D] from :meth:`start`, one row a pair.
            memories: the U distinct spatial memories: [U, S * S, M], or reduced.
            supports: int64 [P, k] on the host: which of the U memories each pair attends to, in the order of the video.
            pointers: [P, k, D] object pointers, or None to leave them out (those of ``recent`` too).
            recent: memories of the volume's slices just before, or None.

        Returns:
            [P, D, S, S] conditioned features.
        """
        tokens = started
        extra = None if pointers is None else self.pointer_tokens(pointers.to(self.dtype), recent)
        groups = self._group(memories, supports)
        for index, layer in enumerate(self.weights.layers):
            if index > 0:
                tokens = self._self_attention(layer, tokens)
            # One layer's keys and values at a time: all of them together would be the peak of memory.
            keys, values = self.project(index, memories)
            more = self._project_own(layer.cross_attention, extra, recent)
            tokens = self._cross_attention(layer, tokens, keys, values, supports, groups, more)
            tokens = self._feed_forward(layer, tokens)
        grid = self.traits.grid
        normed: Tensor = self.weights.norm(tokens)
        return normed.transpose(1, 2).reshape(len(normed), -1, grid, grid)

    def _group(self, memories: Tensor | ReducedMemories, supports: Tensor) -> list[Group]:
        """Say which pairs attend together; empty: whole memories, copied pair by pair."""
        if isinstance(memories, ReducedMemories):
            return group_reduced(memories, supports, self.dtype, self.tactics.spread)
        if self.tactics.gather_whole:
            return group_whole(supports, memories.shape[1], memories.device)
        return []

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:-1], self.heads, -1).transpose(-3, -2)

    @staticmethod
    def _merge(tokens: Tensor) -> Tensor:
        return tokens.transpose(-3, -2).flatten(-2)

    def hot_parts(self) -> list[tuple[object, str]]:
        """Return the methods that are worth compiling, each with its owner: of many operations, and of few shapes."""
        return [(self, "_self_attention"), (self, "_feed_forward")]

    @staticmethod
    def _feed_forward(layer: LayerWeights, tokens: Tensor) -> Tensor:
        forward: Tensor = layer.linear2(layer.activation(layer.linear1(layer.norm3(tokens))))
        return tokens + forward

    def _self_attention(self, layer: LayerWeights, tokens: Tensor) -> Tensor:
        weights = layer.self_attention
        normed = layer.norm1(tokens)
        attended = scaled_dot_product_attention(
            self.rotary.rotate(self._split(weights.query(normed))),
            self.rotary.rotate(self._split(weights.key(normed))),
            self._split(weights.value(normed)),
        )
        projected: Tensor = weights.out(self._merge(attended))
        return tokens + projected

    def _cross_attention(
        self,
        layer: LayerWeights,
        tokens: Tensor,
        keys: Tensor,
        values: Tensor,
        supports: Tensor,
        groups: list[Group],
        more: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        weights = layer.cross_attention
        query = self.rotary.rotate(self._split(weights.query(layer.norm2(tokens))))
        if groups:
            if keys.ndim == 4:
                keys, values = (projected.transpose(0, 1).flatten(1, 2) for projected in (keys, values))
            attended = attend_in_groups(query, keys, values, more, groups)
        else:
            more_keys, more_values = (None, None) if more is None else more
            gathered_keys = self._gather(keys, supports, more_keys)
            gathered_values = self._gather(values, supports, more_values)
            attended = scaled_dot_product_attention(query, gathered_keys, gathered_values)
        projected: Tensor = weights.out(self._merge(attended))
        return tokens + projected

    def _project_own(
        self, weights: AttentionWeights, pointers: tuple[Tensor, Tensor] | None, recent: Recent | None
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values that each pair has for itself: of the slices just before, then of all pointers."""
        keys, values = [], []
        if recent is not None and (count := recent.spatial.shape[1]):
            position = self._place + self._temporal_positions[:count].flip(0)[:, None]
            own = self._split(weights.key((recent.spatial.float() + position).to(self.dtype)))
            # [P, r, heads, S * S, d] -> [P, heads, r * S * S, d]
            keys.append(self.rotary.rotate(own).transpose(1, 2).flatten(2, 3))
            values.append(self._split(weights.value(recent.spatial.to(self.dtype))).transpose(1, 2).flatten(2, 3))
        if pointers is not None:
            tokens, place = pointers
            keys.append(self._split(weights.key(tokens + place)))
            values.append(self._split(weights.value(tokens)))
        return (torch.cat(keys, dim=2), torch.cat(values, dim=2)) if keys else None

    @staticmethod
    def _gather(projected: Tensor, supports: Tensor, more: Tensor | None) -> Tensor:
        """[U, heads, S * S, d], [P, k] and [P, heads, e, d] -> [P, heads, k * S * S + e, d]."""
        _, heads, tokens, width = projected.shape
        pairs, k = supports.shape
        length = k * tokens + (0 if more is None else more.shape[2])
        joined = projected.new_empty(pairs, heads, length, width)
        # Pair by pair, straight to its place: a second copy of everything would cost a tenth of the attention.
        for pair in range(pairs):
            place = joined[pair, :, : k * tokens].view(heads, k, tokens, width)
            place.copy_(projected[supports[pair]].transpose(0, 1))
        if more is not None:
            joined[:, :, k * tokens :] = more
        return joined

"""Which pairs of a query and a class attend together, and to which tokens.

Memories are projected to keys and values once, one after another; a group names the rows that its pairs gather from
there. Pairs whose memories were reduced differ in length: what is missing is padded and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rfss_core.segmentation.batching import send
from rfss_core.segmentation.reduction import ReducedMemories


@dataclass(frozen=True)
class Tactics:
    """How pairs are brought together on a kind of device."""

    spread: float
    """Longest over shortest pair of a group of reduced memories, at most; 0: each pair alone."""
    gather_whole: bool
    """Whole memories are gathered for all pairs at once, else copied pair by pair."""

    @classmethod
    def of(cls, device: torch.device) -> Tactics:
        """Return those of a device.

        On a CPU each pair is for itself: one more call costs nothing there, padding does, and what a query's labels are
        does not depend on its company. On an accelerator calls count, and a quarter of padding costs less than they do.
        """
        return cls(0.0, gather_whole=False) if device.type == "cpu" else cls(1.25, gather_whole=True)


@dataclass(frozen=True)
class Group:
    """Some of P pairs, which attend in one call."""

    pairs: Tensor
    """int64 [g]: which."""
    rows: Tensor
    """int64 [g, L]: the memories' tokens that each attends to."""
    bias: Tensor | None
    """[g, 1, 1, L]: what joins the attention logits, minus infinity where there is only padding; None: nothing."""


def group_whole(supports: Tensor, tokens: int, device: torch.device) -> list[Group]:
    """Return the one group of all pairs, for whole memories.

    Args:
        supports: int64 [P, k] on the host: which memories each pair attends to.
        tokens: of each memory.
        device: where they are.
    """
    rows = send(supports, device)[..., None] * tokens + torch.arange(tokens, device=device)
    return [Group(torch.arange(len(supports), device=device), rows.flatten(1), None)]


def group_reduced(memories: ReducedMemories, supports: Tensor, dtype: torch.dtype, spread: float) -> list[Group]:
    """Return groups of pairs for reduced memories.

    Args:
        memories: U distinct ones.
        supports: int64 [P, k] on the host: which of them each pair attends to.
        dtype: of the bias.
        spread: longest over shortest pair of a group, at most; 0: each pair alone.
    """
    device = memories.tokens.device
    sizes = torch.tensor(memories.lengths)
    starts = sizes.cumsum(0) - sizes
    lengths = sizes[supports].sum(dim=1)
    groups: list[Group] = []
    for pairs in _together(lengths.tolist(), spread):
        own = [
            torch.cat([torch.arange(int(starts[one]), int(starts[one] + sizes[one])) for one in supports[pair]])
            for pair in pairs
        ]
        longest = max(len(row) for row in own)
        rows = send(torch.stack([pad(row, (0, longest - len(row))) for row in own]), device)
        beyond = send(torch.arange(longest) >= lengths[pairs][:, None], device)
        bias = memories.log_count[rows].masked_fill(beyond, -torch.inf).to(dtype)
        groups.append(Group(send(torch.tensor(pairs), device), rows, bias[:, None, None]))
    return groups


def attend_in_groups(
    query: Tensor, keys: Tensor, values: Tensor, more: tuple[Tensor, Tensor] | None, groups: Sequence[Group]
) -> Tensor:
    """Let every pair attend to its memories' tokens and to its own further ones.

    Args:
        query: [P, heads, q, d].
        keys: [heads, n, d], the memories' tokens.
        values: likewise.
        more: keys and values [P, heads, e, d] that each pair has for itself, or None.
        groups: each pair is in one.

    Returns:
        [P, heads, q, d].
    """
    attended = torch.empty_like(query)
    extra = 0 if more is None else more[0].shape[2]
    if more is not None:
        keys, values = (_append(own, further) for own, further in zip((keys, values), more, strict=True))
    for group in groups:
        rows, bias = group.rows, group.bias
        if extra:
            first = keys.shape[1] - len(query) * extra
            further = first + group.pairs[:, None] * extra + torch.arange(extra, device=rows.device)
            rows = torch.cat([rows, further], dim=1)
            bias = None if bias is None else pad(bias, (0, extra))
        attended[group.pairs] = scaled_dot_product_attention(
            query[group.pairs], keys[:, rows].transpose(0, 1), values[:, rows].transpose(0, 1), attn_mask=bias
        )
    return attended


def _append(shared: Tensor, own: Tensor) -> Tensor:
    """[heads, n, d] and [P, heads, e, d] -> [heads, n + P * e, d], so that one gather finds both."""
    return torch.cat([shared, own.transpose(0, 1).flatten(1, 2)], dim=1)


def _together(lengths: Sequence[int], spread: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for pair in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or lengths[pair] > spread * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(pair)
    return groups

"""Token reduction of memories: a support's foreground and its border stay whole, its background is sampled.

Cross-attention over memories is what k supports and several classes cost. Most of a medical slice lies far from the
structure: its tokens all say "not here". Of every block of background cells the one nearest to the block's centre
stands for all of them, and the logarithm of their number joins its attention logits, so that it weighs in the softmax
as much as they did ("proportional attention" of Bolya et al., "Token Merging: Your ViT But Faster", arXiv:2210.09461).
Unlike there, cells are not averaged: the exponential of a mean is less than the mean of exponentials, so a mean key
weighs too little and structures grow (docs/segmentation.md has the comparison); one cell in place of its block has no
such bias.

Memories in the bank stay whole; what is left out here follows from a memory's foreground and the settings alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from rfss_core.segmentation.batching import send
from rfss_core.segmentation.memory import Memory


@dataclass(frozen=True)
class ReducedMemory:
    """The spatial memory of one support slice and class in n of its tokens."""

    tokens: Tensor
    """bfloat16 [n, M]."""
    cells: Tensor
    """int64 [n]: where on the S x S grid, row by row."""
    log_count: Tensor
    """float32 [n]: logarithm of the number of cells that a token stands for."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return self.tokens.nbytes + self.cells.nbytes + self.log_count.nbytes

    def to(self, device: torch.device) -> ReducedMemory:
        """Return a copy on a device."""
        return ReducedMemory(send(self.tokens, device), send(self.cells, device), send(self.log_count, device))


@dataclass(frozen=True)
class ReducedMemories:
    """U reduced memories one after another: the fields of :class:`ReducedMemory`, joined."""

    tokens: Tensor
    cells: Tensor
    log_count: Tensor
    lengths: tuple[int, ...]
    """Tokens of each of the U memories."""

    @classmethod
    def join(cls, memories: Sequence[ReducedMemory]) -> ReducedMemories:
        """Put memories of one device one after another."""
        return cls(
            torch.cat([memory.tokens for memory in memories]),
            torch.cat([memory.cells for memory in memories]),
            torch.cat([memory.log_count for memory in memories]),
            tuple(len(memory) for memory in memories),
        )


@dataclass(frozen=True)
class MemoryReducer:
    """Samples the background of memories."""

    stride: int
    """Side of a block, cells; blocks at the right and lower edge may be smaller. From S on, one token stands for the
    whole background."""
    border: int
    """Cells around the foreground (in all eight directions) that stay whole."""

    def reduce(self, memory: Memory) -> ReducedMemory:
        """Return a memory in fewer tokens, on the host."""
        grid = round(len(memory.foreground) ** 0.5)
        cells, counts = choose_cells(memory.foreground.reshape(grid, grid).numpy(), self.stride, self.border)
        index = torch.from_numpy(cells)
        return ReducedMemory(memory.spatial[index], index, torch.from_numpy(counts).log())


def choose_cells(
    foreground: npt.NDArray[np.bool_], stride: int, border: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Choose the cells of a grid that stay.

    Args:
        foreground: bool [S, S].
        stride: side of a block of background.
        border: cells around the foreground that stay whole.

    Returns:
        The cells, row by row, and how many each stands for.
    """
    whole = foreground
    if border > 0 and foreground.any():
        whole = binary_dilation(foreground, np.ones((2 * border + 1, 2 * border + 1), bool))
    rows, columns = np.nonzero(~whole)
    block = (rows // stride) * foreground.shape[1] + columns // stride
    _, member, counts = np.unique(block, return_inverse=True, return_counts=True)
    centre = [np.bincount(member, axis, len(counts)) / counts for axis in (rows, columns)]
    distance = (rows - centre[0][member]) ** 2 + (columns - centre[1][member]) ** 2
    # Of cells equally near the first; lexsort's last key counts most.
    order = np.lexsort((distance, member))
    chosen = order[np.searchsorted(member[order], np.arange(len(counts)))]
    cells = np.concatenate([np.flatnonzero(whole), rows[chosen] * foreground.shape[1] + columns[chosen]])
    weights = np.concatenate([np.ones(len(cells) - len(counts)), counts])
    sorting = np.argsort(cells)
    return cells[sorting].astype(np.int64), weights[sorting].astype(np.float32)

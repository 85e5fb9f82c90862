"""Token reduction of memories: a support's background is pooled, its foreground and its border stay whole.

Cross-attention over memories is what k supports and several classes cost. Most of a medical slice lies far from the
structure: its tokens all say "not here". They are averaged over blocks, and the logarithm of how many an average stands
for joins the attention logits, so that a block weighs as much in the softmax as its cells did ("proportional attention"
of Bolya et al., "Token Merging: Your ViT But Faster", arXiv:2210.09461). An average lies where its cells lie: it
carries the mean of their sine codes and the rotary code of their centre, which may fall between cells.

Memories in the bank stay whole; what is computed here follows from a memory alone, always on the host, so it is the
same for every device and in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from rfss_core.segmentation.batching import send
from rfss_core.segmentation.memory import Memory


@dataclass(frozen=True)
class ReducedMemory:
    """The spatial memory of one support slice and class in fewer tokens; float32, n tokens."""

    tokens: Tensor
    """[n, M]: cells that stay whole, in their order, then the blocks' averages."""
    place: Tensor
    """[n, M]: sine codes, averaged alike."""
    centre: Tensor
    """[n, 2]: row and column in cells; fractional for blocks."""
    log_count: Tensor
    """[n]: logarithm of the number of cells that a token stands for."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(part.nbytes for part in self.parts())

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four tensors."""
        return self.tokens, self.place, self.centre, self.log_count

    def to(self, device: torch.device) -> ReducedMemory:
        """Return a copy on a device."""
        return ReducedMemory(*(send(part, device) for part in self.parts()))


@dataclass(frozen=True)
class ReducedMemories:
    """U reduced memories one after another: the fields of :class:`ReducedMemory`, joined."""

    tokens: Tensor
    place: Tensor
    centre: Tensor
    log_count: Tensor
    lengths: tuple[int, ...]
    """Tokens of each of the U memories."""

    @classmethod
    def join(cls, memories: Sequence[ReducedMemory]) -> ReducedMemories:
        """Put memories of one device one after another."""
        tokens, place, centre, count = (
            torch.cat(column) for column in zip(*(memory.parts() for memory in memories), strict=True)
        )
        return cls(tokens, place, centre, count, tuple(len(memory) for memory in memories))


class MemoryReducer:
    """Pools the background of memories.

    Args:
        place: float32 [S * S, M], sine code of a memory's cells, on the host.
        pool: side of a block, cells; blocks at the right and lower edge may be smaller. From S on, one token stands for
            the whole background.
        border: cells around the foreground (in all eight directions) that stay whole.
    """

    def __init__(self, place: Tensor, pool: int, border: int) -> None:
        self.pool = pool
        self.border = border
        self._place = place.float()
        self._grid = round(len(place) ** 0.5)
        cells = torch.arange(len(place))
        self._cells = torch.stack([cells // self._grid, cells % self._grid], dim=1).float()

    def reduce(self, memory: Memory) -> ReducedMemory:
        """Return a memory in fewer tokens.

        Args:
            memory: whole, of the grid that ``place`` describes.
        """
        whole = self._find_whole(memory.foreground)
        # One table of all that is averaged, its last column the count.
        table = torch.cat([memory.spatial.float(), self._place, self._cells, torch.ones(len(whole), 1)], dim=1)
        blocks = self._sum_blocks(table * ~whole[:, None])
        blocks = blocks[blocks[:, -1] > 0]
        counts = blocks[:, -1:]
        table = torch.cat([table[whole], torch.cat([blocks[:, :-1] / counts, counts], dim=1)])
        width = memory.spatial.shape[1]
        tokens, place, centre, count = torch.split(table, [width, width, 2, 1], dim=1)
        return ReducedMemory(
            tokens.contiguous(), place.contiguous(), centre.contiguous(), count.squeeze(1).log().contiguous()
        )

    def _find_whole(self, foreground: Tensor) -> Tensor:
        cells = foreground.reshape(1, 1, self._grid, self._grid).float()
        spread = max_pool2d(cells, 2 * self.border + 1, stride=1, padding=self.border)
        return spread.flatten() > 0

    def _sum_blocks(self, table: Tensor) -> Tensor:
        """[S * S, c] -> [blocks, c]."""
        side, missing = self._grid, -self._grid % self.pool
        columns = pad(table.reshape(side, side, -1), (0, 0, 0, missing, 0, missing))
        count = (side + missing) // self.pool
        return columns.reshape(count, self.pool, count, self.pool, -1).sum(dim=(1, 3)).flatten(0, 1)

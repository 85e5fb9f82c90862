"""The memories of a batch where attention wants them: on the device, reduced if the settings say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfss_core.segmentation.batching import send
from rfss_core.segmentation.memory import BoundedCache, Memory
from rfss_core.segmentation.reduction import MemoryReducer, ReducedMemories, ReducedMemory


@dataclass(frozen=True)
class SupportBatch:
    """What P pairs of a query and a class attend to."""

    spatial: Tensor | ReducedMemories
    """The U distinct spatial memories: bfloat16 [U, S * S, M], or reduced."""
    supports: Tensor
    """int64 [P, k] on the host: which of them each pair attends to, in the order of the video."""
    pointers: Tensor
    """float32 [P, k, D]: object pointers."""


class DeviceCache:
    """Brings memories to the device, and keeps there those that were used last.

    On a CPU whole memories are where they should be, and only reduced ones are kept. Safe to use from several threads.

    Args:
        device: where attention computes.
        capacity: bytes to keep.
        reducer: how memories are reduced; None: they stay whole.
    """

    def __init__(self, device: torch.device, capacity: int, reducer: MemoryReducer | None = None) -> None:
        self.device = device
        self.reducer = reducer
        self._kept: BoundedCache[Tensor | ReducedMemory] = BoundedCache(capacity, lambda memory: memory.nbytes)

    def collect(self, pairs: Sequence[Sequence[str]], memories: Mapping[str, Memory]) -> SupportBatch:
        """Return what pairs attend to.

        Args:
            pairs: addresses of each pair's memories; all pairs have as many.
            memories: by address.
        """
        distinct = list(dict.fromkeys(key for keys in pairs for key in keys))
        position = {key: index for index, key in enumerate(distinct)}
        supports = torch.tensor([[position[key] for key in keys] for keys in pairs])
        found = [self._find(key, memories[key]) for key in distinct]
        spatial = _join(found)
        pointers = torch.stack([memories[key].pointer for key in distinct])[supports]
        return SupportBatch(spatial, supports, send(pointers, self.device))

    def _find(self, key: str, memory: Memory) -> Tensor | ReducedMemory:
        if self.reducer is None and self.device.type == "cpu":
            return memory.spatial
        found = self._kept.get(key)
        if found is None:
            found = self._send(memory)
            self._kept.put(key, found)
        return found

    def _send(self, memory: Memory) -> Tensor | ReducedMemory:
        if self.reducer is None:
            return send(memory.spatial, self.device)
        return self.reducer.reduce(memory).to(self.device)


def _join(found: Sequence[Tensor | ReducedMemory]) -> Tensor | ReducedMemories:
    whole = [memory for memory in found if isinstance(memory, Tensor)]
    if whole:
        return torch.stack(whole)
    return ReducedMemories.join([memory for memory in found if isinstance(memory, ReducedMemory)])

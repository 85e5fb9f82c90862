"""Support slices on their way into the memory bank."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from rfss_core.digest import digest_array
from rfss_core.segmentation.adapter import Sam2Adapter
from rfss_core.segmentation.lanes import Lanes
from rfss_core.segmentation.memory import Memory, MemoryBank
from rfss_core.segmentation.preprocess import MASK_BIAS, MASK_SCALE, prepare_image, prepare_mask, round_trip
from rfss_core.segmentation.segmenter import Supports, read_support
from rfss_core.settings import SupportMaskMode


@dataclass(frozen=True)
class _Missing:
    """One support slice with the classes whose memories are not known yet."""

    index: int
    keys: dict[int, str]


@dataclass(frozen=True)
class Memories:
    """Memories of some support slices and classes."""

    by_key: dict[str, Memory]
    """By content address; slices and classes may share one."""
    keys: dict[tuple[int, int], str]
    """Address of each (position in the support set, class value)."""


class SupportEncoder:
    """Gives the memories of support slices, encoding only what the bank does not know.

    Args:
        adapter: the network.
        bank: where memories are kept.
        mode: ``meta``: masks are binarised at N and make the official round trip over N / 4. ``direct``: masks reach
            the memory encoder as they are, shrunk without threshold, so that small structures survive.
    """

    def __init__(self, adapter: Sam2Adapter, bank: MemoryBank, mode: SupportMaskMode) -> None:
        self.adapter = adapter
        self.bank = bank
        self.mode = mode
        self.lanes = Lanes(adapter.device)
        self._keys: dict[tuple[int, int], str] = {}
        self._holders: set[tuple[int, int]] = set()
        self._keys_of: weakref.ref[Supports] | None = None

    def memories(self, support: Supports, indices: Sequence[int], values: Sequence[int]) -> Memories:
        """Return the memories of support slices and classes.

        Args:
            support: the support set.
            indices: which slices, each once.
            values: which classes.

        Returns:
            The memories.

        Raises:
            SupportError: a mask that does not fit its image.
            PixelError: a slice with NaN or infinite pixels.
        """
        addresses = {(index, value): self._address(support, index, value) for index in indices for value in values}
        found = self.bank.find(dict.fromkeys(addresses.values()))
        missing: list[_Missing] = []
        scheduled: set[str] = set(found)
        for index in indices:
            keys = {value: addresses[index, value] for value in values if addresses[index, value] not in scheduled}
            # Two classes that are both absent from a slice share one memory.
            keys = {value: key for key, value in {key: value for value, key in keys.items()}.items()}
            if keys:
                missing.append(_Missing(index, keys))
                scheduled.update(keys.values())
        # Slice by slice: a memory must not depend on which other slices happened to be unknown.
        encoded = self.lanes.map(lambda item: self._encode(support, item), missing)
        for item, memories in zip(missing, encoded, strict=True):
            for key, parts in zip(item.keys.values(), memories, strict=True):
                found[key] = self.bank.add(key, *parts)
        return Memories(found, addresses)

    def holds(self, support: Supports, index: int, value: int) -> bool:
        """Return whether a support slice's mask holds a class."""
        self._address(support, index, value)
        return (index, value) in self._holders

    def _address(self, support: Supports, index: int, value: int) -> str:
        # Hashing a slice costs more than finding its memory, so a support set is read once: it never changes.
        if self._keys_of is None or self._keys_of() is not support:
            self._keys.clear()
            self._holders.clear()
            self._keys_of = weakref.ref(support)
        if (index, value) not in self._keys:
            image, mask = read_support(support, index)
            image_digest = digest_array(np.asarray(image, dtype=np.float32))
            for known in {value, *support.classes}:
                own = mask == known
                self._keys[index, known] = self.bank.key(image_digest, digest_array(own))
                if own.any():
                    self._holders.add((index, known))
        return self._keys[index, value]

    @torch.inference_mode()
    def _encode(self, support: Supports, item: _Missing) -> list[tuple[Tensor, Tensor, Tensor]]:
        adapter, size = self.adapter, self.adapter.traits.image_size
        image, label_map = read_support(support, item.index)
        pixels = prepare_image(image, size)[None].to(adapter.device, adapter.dtype)
        features = adapter.encode_image(pixels)
        encoded: list[tuple[Tensor, Tensor, Tensor]] = []
        cell = size // adapter.traits.grid
        # Class by class, for the same reason: the last bits of a batch depend on its size.
        for value in item.keys:
            mask = prepare_mask(label_map == value, size, harden=self.mode == "meta")[None].to(adapter.device)
            present = (mask > 0).flatten(1).any(dim=1)
            seen = round_trip(mask) if self.mode == "meta" else mask
            spatial = adapter.encode_memory(features.coarse, seen * MASK_SCALE + MASK_BIAS, present)
            pointer = adapter.encode_pointer(features, mask, present)
            encoded.append((spatial[0], pointer[0], max_pool2d(mask, cell)[0, 0] > 0))
        return encoded

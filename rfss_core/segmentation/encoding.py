"""Support slices on their way into the memory bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rfss_core.digest import digest_array
from rfss_core.segmentation.adapter import Sam2Adapter
from rfss_core.segmentation.batching import run_in_batches
from rfss_core.segmentation.memory import Memory, MemoryBank
from rfss_core.segmentation.preprocess import MASK_BIAS, MASK_SCALE, prepare_image, prepare_mask, round_trip
from rfss_core.segmentation.segmenter import Supports, read_support
from rfss_core.settings import SupportMaskMode


@dataclass(frozen=True)
class _Missing:
    """One support slice with the classes whose memories are not known yet."""

    index: int
    keys: dict[int, str]


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
        self._keys: dict[tuple[int, int], str] = {}
        self._keys_of = ""

    def memories(
        self, support: Supports, indices: Sequence[int], values: Sequence[int], batch_size: int
    ) -> tuple[dict[str, Memory], dict[tuple[int, int], str]]:
        """Return the memories of support slices and classes.

        Args:
            support: the support set.
            indices: which slices, each once.
            values: which classes.
            batch_size: slices encoded at once, at most.

        Returns:
            The memories by address, and the address of each (index, class value).

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
        for encoded in run_in_batches(missing, batch_size, lambda batch: self._encode(support, batch)):
            found.update(encoded)
        return found, addresses

    def _address(self, support: Supports, index: int, value: int) -> str:
        # Hashing a slice costs more than finding its memory; a support set's digest vouches for its content.
        if self._keys_of != support.digest:
            self._keys.clear()
            self._keys_of = support.digest
        if (index, value) not in self._keys:
            image, mask = read_support(support, index)
            image_digest = digest_array(np.asarray(image, dtype=np.float32))
            for known in {value, *support.classes}:
                self._keys[index, known] = self.bank.key(image_digest, digest_array(mask == known))
        return self._keys[index, value]

    @torch.inference_mode()
    def _encode(self, support: Supports, batch: Sequence[_Missing]) -> list[dict[str, Memory]]:
        adapter, size = self.adapter, self.adapter.traits.image_size
        slices = [read_support(support, item.index) for item in batch]
        pixels = torch.stack([prepare_image(image, size) for image, _ in slices])
        features = adapter.encode_image(pixels.to(adapter.device, adapter.dtype))
        results: list[dict[str, Memory]] = []
        for row, (item, (_, label_map)) in enumerate(zip(batch, slices, strict=True)):
            values = list(item.keys)
            harden = self.mode == "meta"
            mask = torch.stack([prepare_mask(label_map == value, size, harden=harden) for value in values])
            mask = mask.to(adapter.device)
            present = (mask > 0).flatten(1).any(dim=1)
            rows = torch.full((len(values),), row, device=adapter.device)
            own = features.take(rows)
            seen = round_trip(mask) if self.mode == "meta" else mask
            spatial = adapter.encode_memory(own.coarse, seen * MASK_SCALE + MASK_BIAS, present)
            pointer = adapter.encode_pointer(own, mask, present)
            results.append(
                {key: self.bank.add(key, spatial[n], pointer[n]) for n, key in enumerate(item.keys.values())}
            )
        return results

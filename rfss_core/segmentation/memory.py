"""The memory bank: what SAM 2 remembers of labelled slices, encoded once and kept.

A memory is addressed by its content: the pixels, the mask of one class, the weights, the mode and the arithmetic. So a
changed mask or weight can never meet a stale memory, and whoever holds the same supports shares them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rfss_core.digest import digest_json

# Raised whenever the encoding changes in a way that the key does not show.
ENCODING_VERSION = 2

Value = TypeVar("Value")


@dataclass(frozen=True)
class Memory:
    """SAM 2's memory of one support slice and class, on the host."""

    spatial: Tensor
    """bfloat16 [S * S, M], as the official predictor stores it."""
    pointer: Tensor
    """float32 [D]: the object pointer."""
    foreground: Tensor
    """bool [S * S]: cells that hold a part of the object."""

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return self.spatial.nbytes + self.pointer.nbytes + self.foreground.nbytes


class MemoryStore(Protocol):
    """Where memories outlive the process; safe to share between processes, because keys are content addresses."""

    def get(self, key: str) -> Memory | None:
        """Return a stored memory, or None where there is none that can be trusted."""

    def put(self, key: str, memory: Memory) -> None:
        """Keep a memory."""


class BoundedCache(Generic[Value]):
    """Least-recently-used cache bounded in bytes; safe to use from several threads.

    Args:
        capacity: bytes that the values may hold together; a value larger than that is not kept.
        size: returns the bytes of one value.
    """

    def __init__(self, capacity: int, size: Callable[[Value], int]) -> None:
        self.capacity = capacity
        self.used = 0
        self._size = size
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """Return the value under ``key`` and mark it as used, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        """Keep ``value`` and drop what was used longest ago until everything fits."""
        with self._lock:
            if key in self._values:
                self.used -= self._size(self._values.pop(key))
            if self._size(value) > self.capacity:
                return
            self._values[key] = value
            self.used += self._size(value)
            while self.used > self.capacity:
                self.used -= self._size(self._values.popitem(last=False)[1])

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._values.clear()
            self.used = 0


@dataclass
class BankCounts:
    """What the bank has done so far, in memories."""

    encoded: int = 0
    loaded: int = 0
    reused: int = 0


class MemoryBank:
    """Memories by content address: in a bounded host cache, behind it in a store if there is one.

    Args:
        identity: digest of everything besides image and mask that shapes a memory: weights, mode, arithmetic.
        capacity: bytes of the host cache.
        store: persistent store behind the cache, or None.
    """

    def __init__(self, identity: str, capacity: int, store: MemoryStore | None = None) -> None:
        self.identity = identity
        self.store = store
        self.counts = BankCounts()
        self._cache: BoundedCache[Memory] = BoundedCache(capacity, lambda memory: memory.nbytes)

    def key(self, image_digest: str, mask_digest: str) -> str:
        """Return the address of the memory of one slice and class, 64 hexadecimal digits."""
        return digest_json([ENCODING_VERSION, self.identity, image_digest, mask_digest])

    def find(self, keys: Iterable[str]) -> dict[str, Memory]:
        """Return the memories that are known, by key; what is missing must be encoded and :meth:`add`-ed."""
        found: dict[str, Memory] = {}
        for key in keys:
            memory = self._cache.get(key)
            if memory is not None:
                self.counts.reused += 1
            elif self.store is not None and (memory := self.store.get(key)) is not None:
                self.counts.loaded += 1
                self._cache.put(key, memory)
            if memory is not None:
                found[key] = memory
        return found

    def add(self, key: str, spatial: Tensor, pointer: Tensor, foreground: Tensor) -> Memory:
        """Keep a freshly encoded memory.

        Args:
            key: from :meth:`key`.
            spatial: [M, S, S], on any device, of any float type.
            pointer: [D], likewise.
            foreground: bool [S, S]: cells that hold a part of the object.

        Returns:
            The memory as it is kept.
        """
        memory = Memory(
            spatial.to(torch.bfloat16).flatten(1).T.contiguous().cpu(),
            pointer.float().contiguous().cpu(),
            foreground.flatten().contiguous().cpu(),
        )
        self.counts.encoded += 1
        self._cache.put(key, memory)
        if self.store is not None:
            self.store.put(key, memory)
        return memory

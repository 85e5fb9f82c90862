"""The memory bank: bounded, content-addressed, and one encoding a memory."""

from __future__ import annotations

import torch
from hypothesis import given, settings, strategies

from rfss_core.segmentation.memory import BoundedCache, Memory, MemoryBank


@settings(deadline=None)
@given(
    strategies.integers(0, 40),
    strategies.lists(strategies.tuples(strategies.sampled_from("abcdef"), strategies.integers(1, 20)), max_size=40),
)
def test_a_cache_never_holds_more_than_its_bytes_and_drops_the_least_recently_used(
    capacity: int, steps: list[tuple[str, int]]
) -> None:
    cache: BoundedCache[int] = BoundedCache(capacity, lambda size: size)
    model: dict[str, int] = {}
    for key, size in steps:
        if key in model:
            assert cache.get(key) == model[key]
            model[key] = model.pop(key)
        cache.put(key, size)
        model.pop(key, None)
        if size <= capacity:
            model[key] = size
        while sum(model.values()) > capacity:
            model.pop(next(iter(model)))
        assert cache.used == sum(model.values()) <= capacity
        assert len(cache) == len(model)


class Shelf(dict[str, Memory]):
    """A store in memory."""

    def put(self, key: str, memory: Memory) -> None:
        self[key] = memory


def test_a_store_serves_a_second_bank() -> None:
    shelf = Shelf()
    first = MemoryBank("id", 2**20, shelf)
    key = first.key("image", "mask")
    kept = first.add(key, torch.randn(64, 4, 4), torch.randn(128), torch.ones(4, 4, dtype=torch.bool))
    assert kept.spatial.shape == (16, 64)
    assert kept.spatial.dtype == torch.bfloat16
    second = MemoryBank("id", 2**20, shelf)
    assert second.find([key])[key] is kept
    second.find([key])
    assert (second.counts.encoded, second.counts.loaded, second.counts.reused) == (0, 1, 1)


def test_every_part_of_the_address_counts() -> None:
    keys = {
        MemoryBank(identity, 0).key(image, mask)
        for identity in ("a", "b")
        for image in ("c", "d")
        for mask in ("e", "f")
    }
    assert len(keys) == 8

"""Reduced memories: nothing is lost or counted twice, and what is not reduced stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from torch.nn.functional import scaled_dot_product_attention

from rfss_core.presets import Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.device_cache import DeviceCache
from rfss_core.segmentation.grouping import Tactics, attend_in_groups, group_reduced, group_whole
from rfss_core.segmentation.memory import Memory
from rfss_core.segmentation.reduction import MemoryReducer, ReducedMemories, ReducedMemory
from rfss_core.settings import SegmentationSettings

CPU = torch.device("cpu")
ACCELERATOR = Tactics.of(torch.device("cuda"))


def make_memory(grid: int, seed: int, share: float = 0.1) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    return Memory(
        torch.randn(grid * grid, 8, generator=generator).bfloat16(),
        torch.randn(16, generator=generator),
        torch.rand(grid * grid, generator=generator) < share,
    )


def make_reducer(grid: int, pool: int, border: int) -> MemoryReducer:
    return MemoryReducer(torch.randn(grid * grid, 8, generator=torch.Generator().manual_seed(99)), pool, border)


@settings(deadline=None, max_examples=60)
@given(
    strategies.integers(1, 13),
    strategies.integers(1, 20),
    strategies.integers(0, 3),
    strategies.sampled_from([0.0, 0.02, 0.3, 1.0]),
    strategies.integers(0, 99),
)
def test_every_cell_is_in_exactly_one_token(grid: int, pool: int, border: int, share: float, seed: int) -> None:
    memory, reducer = make_memory(grid, seed, share), make_reducer(grid, pool, border)
    reduced = reducer.reduce(memory)
    count = reduced.log_count.exp()[:, None]
    place = reducer._place
    cells = torch.stack([torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid], 1).double()
    assert count.sum().item() == pytest.approx(grid * grid, abs=1e-2)
    for whole, own in ((memory.spatial, reduced.tokens), (place, reduced.place), (cells, reduced.centre)):
        torch.testing.assert_close((own * count).sum(0).double(), whole.double().sum(0), atol=1e-2, rtol=1e-4)
    # A token stands for no more than a block, and blocks are not larger than asked for.
    assert count.max() <= pool**2 + 1e-3
    blocks = -(-grid // pool)
    assert len(reduced) <= grid * grid
    assert (count > 1.001).sum() <= blocks**2


@settings(deadline=None, max_examples=40)
@given(strategies.integers(2, 12), strategies.integers(0, 3), strategies.integers(0, 99))
def test_foreground_and_its_border_stay_as_they_are(grid: int, border: int, seed: int) -> None:
    memory = make_memory(grid, seed, 0.05)
    reduced = make_reducer(grid, grid, border).reduce(memory)
    near = np.zeros((grid, grid), bool)
    for row, column in zip(*np.nonzero(memory.foreground.reshape(grid, grid).numpy()), strict=True):
        near[max(0, row - border) : row + border + 1, max(0, column - border) : column + border + 1] = True
    expected = memory.spatial[torch.from_numpy(near.flatten())].float()
    assert torch.equal(reduced.tokens[: len(expected)], expected)
    # The whole background is one token more.
    assert len(reduced) == len(expected) + (0 if near.all() else 1)


def test_an_empty_mask_reduces_the_most() -> None:
    reducer = make_reducer(16, 4, 1)
    lengths = [len(reducer.reduce(make_memory(16, 0, share))) for share in (0.0, 0.02, 0.2, 1.0)]
    assert lengths[0] == 16 < lengths[1] < lengths[2] < lengths[3] == 256


@settings(deadline=None, max_examples=25)
@given(strategies.lists(strategies.integers(1, 6), min_size=1, max_size=6), strategies.integers(0, 99))
def test_a_token_weighs_as_much_as_the_equal_tokens_it_stands_for(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, keys, values = (torch.randn(2, length, 8, generator=generator) for length in (3, len(counts), len(counts)))
    repeats = torch.tensor(counts)
    expected = scaled_dot_product_attention(
        query, keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    )
    blank = torch.zeros(len(counts), 8)
    memories = ReducedMemories.join([ReducedMemory(blank, blank, blank[:, :2], repeats.float().log())])
    groups = group_reduced(memories, torch.tensor([[0]]), torch.float32, 0.0)
    torch.testing.assert_close(attend_in_groups(query[None], keys, values, None, groups)[0], expected)


@pytest.mark.parametrize("spread", [0.0, 1.25, 100.0])
def test_pairs_of_different_length_attend_together_as_they_do_alone(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reducer = make_reducer(8, 4, 0)
    memories = ReducedMemories.join(
        [reducer.reduce(make_memory(8, seed, share)) for seed, share in enumerate((0.0, 0.1, 0.9))]
    )
    supports = torch.tensor([[0, 1], [2, 2], [1, 0], [2, 1]])
    total = sum(memories.lengths)
    query = torch.randn(4, 2, 5, 8, generator=generator)
    keys, values = torch.randn(2, 2, total, 8, generator=generator)
    more = (torch.randn(4, 2, 3, 8, generator=generator), torch.randn(4, 2, 3, 8, generator=generator))
    attended = attend_in_groups(query, keys, values, more, group_reduced(memories, supports, torch.float32, spread))
    starts = np.cumsum([0, *memories.lengths])
    for pair, own in enumerate(supports.tolist()):
        rows = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in own])
        expected = scaled_dot_product_attention(
            query[pair],
            torch.cat([keys[:, rows], more[0][pair]], 1),
            torch.cat([values[:, rows], more[1][pair]], 1),
            attn_mask=torch.cat([memories.log_count[rows], torch.zeros(3)])[None, None],
        )
        torch.testing.assert_close(attended[pair], expected)


def test_whole_memories_are_gathered_at_once_as_they_are_one_by_one() -> None:
    groups = group_whole(torch.tensor([[1, 0], [2, 2]]), 3, CPU)
    assert groups[0].rows.tolist() == [[3, 4, 5, 0, 1, 2], [6, 7, 8, 6, 7, 8]]


def logits(segmenter: Any, toys: Any, support: Any) -> np.ndarray:
    return np.concatenate([one.logits.ravel() for one in segmenter.segment(toys.queries, toys.found, support)])


def load(preset: Preset, settings: SegmentationSettings, **changes: Any) -> Any:
    return load_segmenter(settings.model_copy(update=changes), preset)


@pytest.mark.parametrize("pointers", [True, False])
@pytest.mark.parametrize("tactics", [Tactics.of(CPU), ACCELERATOR])
def test_blocks_of_one_cell_change_nothing(
    toys: Any, preset: Preset, settings: SegmentationSettings, pointers: bool, tactics: Tactics
) -> None:
    support = toys.shapes(6, without_square=(2,))
    whole, blocks = (load(preset, settings, use_object_pointers=pointers) for _ in range(2))
    blocks.device_cache.reducer = MemoryReducer(blocks.adapter.memory_attention.memory_position, 1, 0)
    blocks.attention.tactics = tactics
    np.testing.assert_allclose(logits(whole, toys, support), logits(blocks, toys, support), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pool", [1, 2])
def test_the_accelerators_way_gives_what_the_cpus_way_gives(
    toys: Any, preset: Preset, settings: SegmentationSettings, dtype: str, pool: int
) -> None:
    support = toys.shapes(6, without_square=(2,))
    cpu, accelerator = (load(preset, settings, background_pool=pool, dtype=dtype) for _ in range(2))
    accelerator.attention.tactics = ACCELERATOR
    one, other = logits(cpu, toys, support), logits(accelerator, toys, support)
    assert np.isfinite(other).all()
    np.testing.assert_allclose(one, other, atol=1e-4 if dtype == "float32" else 0.1 * np.abs(one).max())


def test_reduction_moves_logits_and_more_of_it_moves_them_more(
    toys: Any, preset: Preset, settings: SegmentationSettings
) -> None:
    support = toys.shapes(6, without_square=(2,))
    whole = logits(load(preset, settings), toys, support)
    moved = [
        np.abs(logits(load(preset, settings, background_pool=pool, background_border=0), toys, support) - whole).mean()
        for pool in (2, 4)
    ]
    assert 0 < moved[0] < moved[1]


def test_reduction_belongs_to_the_digest_and_its_border_only_where_it_counts(
    preset: Preset, settings: SegmentationSettings
) -> None:
    base = load(preset, settings).digest
    assert load(preset, settings, background_border=2).digest == base
    pooled = [load(preset, settings, background_pool=2, background_border=border).digest for border in (1, 2)]
    assert len({base, *pooled}) == 3


def test_neither_threads_nor_a_cache_move_a_bit_of_reduced_results(
    toys: Any, preset: Preset, settings: SegmentationSettings
) -> None:
    support, threads, outcomes = toys.shapes(6), torch.get_num_threads(), []
    try:
        for count, capacity in ((1, 2048), (3, 2048), (2, 0)):
            torch.set_num_threads(count)
            segmenter = load(preset, settings, background_pool=2, batch_size=2, device_cache_mb=capacity)
            outcomes.append(logits(segmenter, toys, support))
            outcomes.append(logits(segmenter, toys, support))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        np.testing.assert_array_equal(outcomes[0], other)


@pytest.mark.parametrize("reduce", [True, False])
def test_memories_go_to_the_device_once_and_stay_within_the_cache(reduce: bool) -> None:
    memories = {str(seed): make_memory(8, seed) for seed in range(4)}
    reducer = make_reducer(8, 4, 0) if reduce else None
    sent: list[int] = []

    class Counting(DeviceCache):
        def _send(self, memory: Memory) -> Any:
            sent.append(1)
            return super()._send(memory)

    # torch's "meta" device stands for any that is not the host.
    cache = Counting(torch.device("meta"), 2**20, reducer)
    batch = cache.collect([["0", "1"], ["1", "2"]], memories)
    assert batch.supports.tolist() == [[0, 1], [1, 2]]
    assert batch.supports.device == CPU
    assert batch.pointers.shape == (2, 2, 16)
    assert batch.pointers.device.type == "meta"
    cache.collect([["2", "3"]], memories)
    assert len(sent) == 4
    small = Counting(torch.device("meta"), 0, reducer)
    for _ in range(2):
        small.collect([["0"]], memories)
    assert len(sent) == 6

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
from rfss_core.segmentation.reduction import MemoryReducer, ReducedMemories, ReducedMemory, choose_cells
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


@settings(deadline=None, max_examples=80)
@given(
    strategies.integers(1, 13),
    strategies.integers(1, 20),
    strategies.integers(0, 3),
    strategies.sampled_from([0.0, 0.02, 0.3, 1.0]),
    strategies.integers(0, 99),
)
def test_every_background_block_keeps_one_cell_that_stands_for_all(
    grid: int, stride: int, border: int, share: float, seed: int
) -> None:
    foreground = np.random.default_rng(seed).random((grid, grid)) < share
    cells, counts = choose_cells(foreground, stride, border)
    near = np.zeros((grid, grid), bool)
    for row, column in zip(*np.nonzero(foreground), strict=True):
        near[max(0, row - border) : row + border + 1, max(0, column - border) : column + border + 1] = True
    assert (np.diff(cells) > 0).all()
    weight = np.zeros(grid * grid)
    weight[cells] = counts
    weight = weight.reshape(grid, grid)
    assert (weight[near] == 1).all()
    for row in range(0, grid, stride):
        for column in range(0, grid, stride):
            block = (slice(row, row + stride), slice(column, column + stride))
            background = ~near[block]
            found = weight[block][background]
            assert found.sum() == background.sum()
            assert (found > 0).sum() == (1 if background.any() else 0)


def test_the_cell_nearest_to_the_centre_of_its_block_is_chosen() -> None:
    foreground = np.zeros((6, 6), bool)
    foreground[4, 4] = True
    cells, counts = choose_cells(foreground, 3, 0)
    assert [divmod(int(cell), 6) for cell in cells] == [(1, 1), (1, 4), (3, 4), (4, 1), (4, 4)]
    assert counts.tolist() == [9, 9, 8, 9, 1]


def test_a_reduced_memory_holds_cells_of_the_whole_one() -> None:
    memory = make_memory(8, 0)
    reduced = MemoryReducer(4, 1).reduce(memory)
    assert torch.equal(reduced.tokens, memory.spatial[reduced.cells])


def test_an_empty_mask_reduces_the_most() -> None:
    reducer = MemoryReducer(4, 1)
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
    memory = ReducedMemory(torch.zeros(len(counts), 8), torch.arange(len(counts)), repeats.float().log())
    memories = ReducedMemories.join([memory])
    groups = group_reduced(memories, torch.tensor([[0]]), torch.float32, 0.0)
    torch.testing.assert_close(attend_in_groups(query[None], keys, values, None, groups)[0], expected)


@pytest.mark.parametrize("spread", [0.0, 1.25, 100.0])
def test_pairs_of_different_length_attend_together_as_they_do_alone(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reducer = MemoryReducer(4, 0)
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
    blocks.device_cache.reducer = MemoryReducer(1, 0)
    blocks.attention.tactics = tactics
    np.testing.assert_allclose(logits(whole, toys, support), logits(blocks, toys, support), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_accelerators_way_gives_what_the_cpus_way_gives(
    toys: Any, preset: Preset, settings: SegmentationSettings, dtype: str, stride: int
) -> None:
    support = toys.shapes(6, without_square=(2,))
    cpu, accelerator = (load(preset, settings, background_stride=stride, dtype=dtype) for _ in range(2))
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
        np.abs(
            logits(load(preset, settings, background_stride=stride, background_border=0), toys, support) - whole
        ).mean()
        for stride in (2, 4)
    ]
    assert 0 < moved[0] < moved[1]


def test_reduction_belongs_to_the_digest_and_its_border_only_where_it_counts(
    preset: Preset, settings: SegmentationSettings
) -> None:
    base = load(preset, settings).digest
    assert load(preset, settings, background_border=3).digest == base
    reduced = [load(preset, settings, background_stride=2, background_border=border).digest for border in (1, 2)]
    assert len({base, *reduced}) == 3


def test_neither_threads_nor_a_cache_move_a_bit_of_reduced_results(
    toys: Any, preset: Preset, settings: SegmentationSettings
) -> None:
    support, threads, outcomes = toys.shapes(6), torch.get_num_threads(), []
    try:
        for count, capacity in ((1, 2048), (3, 2048), (2, 0)):
            torch.set_num_threads(count)
            segmenter = load(preset, settings, background_stride=2, batch_size=2, device_cache_mb=capacity)
            outcomes.append(logits(segmenter, toys, support))
            outcomes.append(logits(segmenter, toys, support))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        np.testing.assert_array_equal(outcomes[0], other)


@pytest.mark.parametrize("reduce", [True, False])
def test_memories_go_to_the_device_once_and_stay_within_the_cache(reduce: bool) -> None:
    memories = {str(seed): make_memory(8, seed) for seed in range(4)}
    reducer = MemoryReducer(4, 0) if reduce else None
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

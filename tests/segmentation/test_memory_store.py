"""Memories in the workspace survive, are shared, and are never trusted when damaged."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfss_core.errors import StoreError
from rfss_core.presets import Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.memory import Memory
from rfss_core.segmentation.memory_store import ZarrMemoryStore
from rfss_core.settings import SegmentationSettings

KEY = "0123456789abcdef" * 4


def make(seed: int = 0) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    foreground = torch.rand(16, generator=generator) < 0.5
    return Memory(
        torch.randn(16, 64, generator=generator).bfloat16(), torch.randn(128, generator=generator), foreground
    )


def test_a_memory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    memory = make()
    ZarrMemoryStore(str(tmp_path)).put(KEY, memory)
    again = ZarrMemoryStore(str(tmp_path)).get(KEY)
    assert again is not None
    assert torch.equal(again.spatial, memory.spatial)
    assert torch.equal(again.pointer, memory.pointer)
    assert torch.equal(again.foreground, memory.foreground)


def test_a_memory_of_zeros_is_a_memory(tmp_path: Path) -> None:
    store = ZarrMemoryStore(str(tmp_path))
    store.put(KEY, Memory(torch.zeros(4, 64).bfloat16(), torch.zeros(8), torch.zeros(4, dtype=torch.bool)))
    again = store.get(KEY)
    assert again is not None
    assert not again.spatial.any()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "metadata"])
def test_damage_makes_a_memory_absent_and_a_new_one_heals_it(tmp_path: Path, damage: str) -> None:
    store = ZarrMemoryStore(str(tmp_path))
    store.put(KEY, make())
    chunk = tmp_path / KEY[:2] / KEY / "c" / "0"
    data = bytearray(chunk.read_bytes())
    if damage == "flip":
        data[100] ^= 1
        chunk.write_bytes(data)
    elif damage == "cut":
        chunk.write_bytes(data[:100])
    elif damage == "delete":
        chunk.unlink()
    else:
        (chunk.parent.parent / "zarr.json").write_text("{")
    assert store.get(KEY) is None
    store.put(KEY, make(1))
    healed = store.get(KEY)
    assert healed is not None
    assert torch.equal(healed.spatial, make(1).spatial)


def test_what_was_never_stored_is_absent(tmp_path: Path) -> None:
    assert ZarrMemoryStore(str(tmp_path)).get(KEY) is None


@pytest.mark.parametrize("key", ["../../etc", "", KEY[:-1] + "G"])
def test_keys_that_are_no_address_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="no address"):
        ZarrMemoryStore(str(tmp_path)).get(key)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"writing '01/0123.* failed"):
        ZarrMemoryStore(str(tmp_path / "file")).put(KEY, make())


def test_writers_of_one_key_leave_a_memory_that_can_be_read(tmp_path: Path) -> None:
    store = ZarrMemoryStore(str(tmp_path))
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(5):
                store.put(KEY, make())
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    again = store.get(KEY)
    assert again is not None
    assert torch.equal(again.spatial, make().spatial)


def test_a_second_run_encodes_nothing_and_gives_the_same_bits(
    toys: Any, preset: Preset, settings: SegmentationSettings, tmp_path: Path
) -> None:
    support = toys.shapes(6, without_square=(2,))
    runs = []
    for _ in range(2):
        segmenter: Any = load_segmenter(settings, preset, memories=ZarrMemoryStore(str(tmp_path)))
        runs.append((segmenter.segment(toys.queries, toys.found, support), segmenter.bank.counts))
    assert runs[0][1].encoded == runs[1][1].loaded == 12
    assert runs[1][1].encoded == 0
    for first, second in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(first.logits, second.logits)

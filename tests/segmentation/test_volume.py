"""What volume consistency promises, whatever the weights; its parity is in test_parity.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfss_core.errors import SettingsError
from rfss_core.presets import Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.label_fusion import LabelFusionSegmenter
from rfss_core.segmentation.segmenter import split_volumes
from rfss_core.segmentation.volume import Request, Track, merge_directions
from rfss_core.settings import SegmentationSettings


@pytest.fixture
def load(preset: Preset, settings: SegmentationSettings) -> Callable[..., Any]:
    def make(volume_memories: int = 2, **changes: Any) -> Any:
        return load_segmenter(settings.model_copy(update={"volume_memories": volume_memories, **changes}), preset)

    return make


def assert_equal(one: Any, other: Any) -> None:
    for mine, theirs in zip(one, other, strict=True):
        for field in ("labels", "object_score", "predicted_iou", "logits"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(theirs, field))


def test_volumes_change_labels_only_where_they_are_asked_for(toys: Any, load: Callable[..., Any]) -> None:
    support = toys.shapes(6)
    off = load(0)
    alone = off.segment(toys.queries, toys.found, support)
    assert_equal(off.segment(toys.queries, toys.found, support, volumes=[2, 3]), alone)
    on = load(2)
    assert_equal(on.segment(toys.queries, toys.found, support), alone)
    together = on.segment(toys.queries, toys.found, support, volumes=[2, 3])
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.logits - other.logits).max() > 1e-3
        assert other.labels.shape == one.labels.shape


def test_images_that_are_no_volumes_are_labelled_as_if_the_mode_were_off(toys: Any, load: Callable[..., Any]) -> None:
    support = toys.shapes(6)
    on = load(6)
    singles = on.segment(toys.queries, toys.found, support, volumes=[1] * 5)
    assert_equal(singles, load(0).segment(toys.queries, toys.found, support))
    # Among volumes too, but for the last bits of another batch.
    mixed = on.segment(toys.queries, toys.found, support, volumes=[3, 1, 1])
    for one, other in zip(singles[3:], mixed[3:], strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


def test_a_single_slice_costs_no_memory_encoding(
    toys: Any, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    on, support = load(6), toys.shapes(6)
    on.segment(toys.queries, toys.found, support)

    def never(*_: Any) -> Any:
        raise AssertionError("a slice that no other will remember was encoded")

    monkeypatch.setattr(on.adapter, "encode_memory", never)
    on.segment(toys.queries, toys.found, support, volumes=[1] * 5)


def test_turning_the_volume_round_turns_the_labels_round(toys: Any, load: Callable[..., Any]) -> None:
    support, on = toys.shapes(6), load(3)
    up = on.segment(toys.queries, toys.found, support, volumes=[5])
    down = on.segment(toys.queries[::-1], toys.found[::-1], support, volumes=[5])
    assert_equal(up, down[::-1])


def test_a_volume_does_not_depend_on_its_company_or_on_the_other_classes(toys: Any, load: Callable[..., Any]) -> None:
    support = toys.shapes(6)
    both = load().segment(toys.queries, toys.found, support, volumes=[3, 2])
    assert_equal(both[:3], load().segment(toys.queries[:3], toys.found[:3], support, volumes=[3]))
    only = load().segment(toys.queries, toys.found, support, volumes=[3, 2], classes=[3])
    for one, other in zip(both, only, strict=True):
        np.testing.assert_array_equal(one.logits[1], other.logits[0])


def test_neither_threads_nor_caches_nor_batches_change_a_bit(toys: Any, load: Callable[..., Any]) -> None:
    support, threads = toys.shapes(6), torch.get_num_threads()
    expected = load().segment(toys.queries, toys.found, support, volumes=[4, 1])
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_equal(load().segment(toys.queries, toys.found, support, volumes=[4, 1]), expected)
    finally:
        torch.set_num_threads(threads)
    for changes in ({"host_cache_mb": 0}, {"batch_size": 1}):
        assert_equal(load(**changes).segment(toys.queries, toys.found, support, volumes=[4, 1]), expected)


def test_every_slice_is_encoded_once_for_both_directions(
    toys: Any, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    on, support = load(batch_size=1), toys.shapes(6)
    on.segment(toys.queries, toys.found, support)
    encode, images = on.adapter.encode_image, []

    def count(pixels: torch.Tensor) -> Any:
        images.extend(range(len(pixels)))
        return encode(pixels)

    monkeypatch.setattr(on.adapter, "encode_image", count)
    on.segment(toys.queries, toys.found, support, volumes=[5])
    assert len(images) == 5


def test_the_two_directions_are_averaged(toys: Any, load: Callable[..., Any]) -> None:
    on, support, values = load(), toys.shapes(6), [1, 3]
    merged = on.segment(toys.queries, toys.found, support, volumes=[5])
    request = Request(toys.queries, on.choose(toys.found, support, values), support, values, limit=2)
    up, down = on.tracker.follow(request, [Track(0, (0, 1, 2, 3, 4)), Track(0, (4, 3, 2, 1, 0))])
    for row, (one, other) in enumerate(zip(up, down[::-1], strict=True)):
        mean = merge_directions(one, other)
        assert merged[row].object_score[0] == mean.object_score[0] == (one.object_score + other.object_score)[0] / 2
        assert merged[row].predicted_iou[0] == mean.predicted_iou[0]


def test_what_the_gate_calls_absent_is_remembered_as_absent(toys: Any, load: Callable[..., Any]) -> None:
    support, values = toys.shapes(2), [1, 3]
    found = [toys.Found.of(0, 1)] * 2
    second = []
    for threshold in (None, -1e6, 1e6):
        on = load(object_score_threshold=threshold)
        request = Request(toys.queries[:2], on.choose(found, support, values), support, values, limit=2)
        second.append(on.tracker.follow(request, [Track(0, (0, 1))])[0][1].logits)
    assert torch.equal(second[0], second[1])
    assert not torch.allclose(second[0], second[2], atol=1e-3)


def test_class_wise_supports_of_different_numbers(toys: Any, load: Callable[..., Any]) -> None:
    support = toys.shapes(6, without_square=(0, 2, 3, 4, 5))
    on = load(class_supports=2, absent_share=0.0)
    results = on.segment(toys.queries, toys.found, support, volumes=[5])
    assert all(np.isfinite(result.logits).all() for result in results)


def test_reduced_supports_beside_whole_memories_of_slices(toys: Any, load: Callable[..., Any]) -> None:
    support = toys.shapes(6)
    whole = load().segment(toys.queries, toys.found, support, volumes=[5])
    sparse = {"background_stride": 2, "background_border": 0}
    reduced = load(**sparse).segment(toys.queries, toys.found, support, volumes=[5])
    one_by_one = load(0, **sparse).segment(toys.queries, toys.found, support)
    for other in (whole, one_by_one):
        assert any(np.abs(a.logits - b.logits).max() > 1e-4 for a, b in zip(reduced, other, strict=True))


def test_more_memories_than_the_network_tells_apart(
    model_folder: Callable[..., Path], settings: SegmentationSettings
) -> None:
    preset = Preset("", str(model_folder(num_maskmem=3)), 4, "direct", "")
    load_segmenter(settings.model_copy(update={"volume_memories": 2}), preset)
    with pytest.raises(SettingsError, match="volume_memories is 3, but this network tells only 2 earlier slices"):
        load_segmenter(settings.model_copy(update={"volume_memories": 3}), preset)


@pytest.mark.parametrize("volumes", [[2, 2], [5, 1], [5, 0], [6, -1]])
def test_volumes_that_do_not_make_up_the_queries(toys: Any, load: Callable[..., Any], volumes: list[int]) -> None:
    for segmenter in (load(0), LabelFusionSegmenter()):
        with pytest.raises(SettingsError, match="do not make up 5 queries"):
            segmenter.segment(toys.queries, toys.found, toys.shapes(6), volumes=volumes)


def test_volumes_become_runs_of_queries() -> None:
    assert split_volumes(6, [3, 1, 2]) == [range(3), range(3, 4), range(4, 6)]
    assert split_volumes(2, None) == [range(1), range(1, 2)]


def test_the_number_of_memories_belongs_to_the_digest(load: Callable[..., Any]) -> None:
    assert len({load(count).digest for count in range(7)}) == 7

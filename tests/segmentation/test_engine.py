"""What the engine promises, whatever the weights: the same labels however work is batched, shared or cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rfss_core.errors import ExecutionError, PixelError, SupportError
from rfss_core.presets import Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.settings import SegmentationSettings


@pytest.fixture
def segmenter(preset: Preset, settings: SegmentationSettings) -> Any:
    return load_segmenter(settings, preset)


def logits(segmenter: Any, queries: list[np.ndarray], found: list[Any], support: Any, **more: Any) -> list[np.ndarray]:
    return [one.logits for one in segmenter.segment(queries, found, support, **more)]


def test_shapes_and_types_of_a_segmentation(toys: Any, segmenter: Any) -> None:
    results = segmenter.segment(toys.queries, toys.found, toys.shapes(6))
    for query, result in zip(toys.queries, results, strict=True):
        assert result.labels.shape == query.shape
        assert result.labels.dtype == np.uint8
        assert set(np.unique(result.labels)) <= {0, 1, 3}
        assert result.logits.shape == (2, *query.shape)
        assert {array.dtype for array in (result.logits, result.object_score, result.predicted_iou)} == {
            np.dtype(np.float32)
        }
        assert ((result.predicted_iou >= 0) & (result.predicted_iou <= 1)).all()


def test_queries_of_different_sizes_come_back_on_their_own_grids(toys: Any, segmenter: Any) -> None:
    queries = [toys.draw(1, (33, 120))[0], toys.draw(2, (200, 64))[0], np.repeat(toys.draw(3)[0][..., None], 3, axis=2)]
    results = segmenter.segment(queries, [toys.Found.of(0, 1)] * 3, toys.shapes(2))
    assert [result.labels.shape for result in results] == [(33, 120), (200, 64), (70, 90)]


def test_a_grey_slice_equals_the_same_slice_in_three_channels(toys: Any, segmenter: Any) -> None:
    grey = toys.draw(3)[0]
    one, three = segmenter.segment(
        [grey, np.repeat(grey[..., None], 3, axis=2)], [toys.Found.of(0, 1)] * 2, toys.shapes(2)
    )
    np.testing.assert_allclose(one.logits, three.logits, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_query_does_not_depend_on_what_shares_its_batch(
    toys: Any, preset: Preset, settings: SegmentationSettings, batch_size: int
) -> None:
    support = toys.shapes(6)
    alone = [
        logits(load_segmenter(settings, preset), [query], [found], support)[0]
        for query, found in zip(toys.queries, toys.found, strict=True)
    ]
    together = load_segmenter(settings.model_copy(update={"batch_size": batch_size}), preset)
    for one, other in zip(alone, logits(together, toys.queries, toys.found, support), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_supports_are_encoded_once_and_reused_bit_for_bit(toys: Any, segmenter: Any) -> None:
    support = toys.shapes(6)
    first = logits(segmenter, toys.queries, toys.found, support)
    assert segmenter.bank.counts.encoded == 6 * 2
    second = logits(segmenter, toys.queries, toys.found, support)
    assert segmenter.bank.counts.encoded == 6 * 2
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_a_changed_mask_is_encoded_again(toys: Any, segmenter: Any) -> None:
    support = toys.shapes(4)
    logits(segmenter, toys.queries[:1], [toys.Found.of(0, 1, 2, 3)], support)
    changed = toys.shapes(4)
    changed.masks[2] = np.where(changed.masks[2] == 1, 0, changed.masks[2])
    changed.name = "changed"
    logits(segmenter, toys.queries[:1], [toys.Found.of(0, 1, 2, 3)], changed)
    assert segmenter.bank.counts.encoded == 4 * 2 + 1


def test_a_support_without_the_class_is_evidence(toys: Any, segmenter: Any) -> None:
    with_square, without = toys.shapes(2), toys.shapes(2, without_square=(1,))
    without.images[1] = with_square.images[1]
    without.masks[1] = np.where(with_square.masks[1] == 3, 0, with_square.masks[1])
    without.name = "without"
    present, absent = (
        logits(segmenter, toys.queries[:1], [toys.Found.of(0, 1)], support)[0] for support in (with_square, without)
    )
    # The disc's masks are equal but for pixels that the square covered; the square's own plane must move.
    assert np.abs(present[1] - absent[1]).max() > 1e-4


def test_classes_do_not_influence_each_other_before_merging(toys: Any, segmenter: Any) -> None:
    support = toys.shapes(3)
    both = logits(segmenter, toys.queries[:2], [toys.Found.of(0, 1, 2)] * 2, support)
    only = logits(segmenter, toys.queries[:2], [toys.Found.of(0, 1, 2)] * 2, support, classes=[3])
    for one, other in zip(both, only, strict=True):
        np.testing.assert_allclose(one[1], other[0], atol=1e-4)


def test_sam_2_0_does_not_depend_on_the_order_of_supports_and_2_1_does(
    toys: Any, model_folder: Callable[..., Path], settings: SegmentationSettings
) -> None:
    spread = {}
    for version in ("2.0", "2.1"):
        segmenter = load_segmenter(settings, Preset("", str(model_folder(version=version)), 4, "meta", ""))
        forth, back = (
            logits(segmenter, toys.queries[:1], [order], toys.shapes(3))[0]
            for order in (toys.Found.of(0, 1, 2), toys.Found.of(2, 1, 0))
        )
        spread[version] = np.abs(forth - back).max()
    assert spread["2.0"] < 1e-4 < spread["2.1"]


def test_pointers_change_the_result(toys: Any, preset: Preset, settings: SegmentationSettings) -> None:
    without = settings.model_copy(update={"use_object_pointers": False})
    one, other = (
        logits(load_segmenter(chosen, preset), toys.queries[:1], [toys.Found.of(0, 1)], toys.shapes(2))[0]
        for chosen in (settings, without)
    )
    assert np.abs(one - other).max() > 1e-4


def test_the_gate_silences_a_class_and_keeps_its_raw_logits(
    toys: Any, preset: Preset, settings: SegmentationSettings
) -> None:
    support = toys.shapes(2)
    free = load_segmenter(settings, preset).segment(toys.queries[:1], [toys.Found.of(0, 1)], support)[0]
    threshold = float(free.object_score.max()) + 1
    gated = load_segmenter(settings.model_copy(update={"object_score_threshold": threshold}), preset)
    result = gated.segment(toys.queries[:1], [toys.Found.of(0, 1)], support)[0]
    assert not result.labels.any()
    np.testing.assert_array_equal(result.logits, free.logits)


def test_labels_follow_from_logits(toys: Any, segmenter: Any) -> None:
    for result in segmenter.segment(toys.queries, toys.found, toys.shapes(6)):
        planes = np.concatenate([np.zeros_like(result.logits[:1]), result.logits])
        np.testing.assert_array_equal(result.labels, np.array([0, 1, 3])[planes.argmax(axis=0)])


def test_logits_are_left_out_on_request(toys: Any, segmenter: Any) -> None:
    assert segmenter.segment(toys.queries[:1], toys.found[:1], toys.shapes(3), keep_logits=False)[0].logits is None


def test_digest_changes_with_what_decides_labels_and_with_nothing_else(
    preset: Preset, settings: SegmentationSettings, model_folder: Callable[..., Path]
) -> None:
    base = load_segmenter(settings, preset).digest
    for change in (
        {"object_score_threshold": 0.5},
        {"use_object_pointers": False},
        {"support_masks": "meta"},
        {"dtype": "bfloat16"},
        {"merging": "softmax"},
        {"model": str(model_folder(seed=1))},
    ):
        assert load_segmenter(settings.model_copy(update=change), preset).digest != base
    for change in ({"batch_size": 1}, {"host_cache_mb": 1}, {"device_cache_mb": 0}):
        assert load_segmenter(settings.model_copy(update=change), preset).digest == base


def test_bfloat16_stays_near_float32(toys: Any, preset: Preset, settings: SegmentationSettings) -> None:
    support = toys.shapes(2)
    exact, rough = (
        logits(
            load_segmenter(settings.model_copy(update={"dtype": dtype}), preset),
            toys.queries[:1],
            [toys.Found.of(0, 1)],
            support,
        )[0]
        for dtype in ("float32", "bfloat16")
    )
    assert np.abs(exact - rough).max() < 0.1 * np.abs(exact).max() + 0.05


def test_a_host_cache_too_small_for_the_batch_still_gives_the_same_result(
    toys: Any, preset: Preset, settings: SegmentationSettings
) -> None:
    support = toys.shapes(6)
    small = load_segmenter(settings.model_copy(update={"host_cache_mb": 0}), preset)
    for one, other in zip(
        logits(small, toys.queries, toys.found, support),
        logits(load_segmenter(settings, preset), toys.queries, toys.found, support),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    toys: Any, segmenter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = toys.shapes(6)
    expected = logits(segmenter, toys.queries, toys.found, support)
    sizes: list[int] = []
    decode = segmenter._decode

    def short_of_memory(queries: Any, *rest: Any) -> Any:
        sizes.append(len(queries))
        if len(queries) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(queries, *rest)

    monkeypatch.setattr(segmenter, "_decode", short_of_memory)
    for one, other in zip(expected, logits(segmenter, toys.queries, toys.found, support), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert sizes == [5, 2, 2, 1]


def test_a_slice_that_never_fits_ends_with_a_remedy(toys: Any, segmenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter, "_decode", never)
    with pytest.raises(ExecutionError, match="lower k"):
        segmenter.segment(toys.queries, toys.found, toys.shapes(6))


@pytest.mark.parametrize(
    ("indices", "count", "classes", "message"),
    [
        ((0,), 0, None, "support set is empty"),
        ((), 2, None, "has no neighbours"),
        ((0, 1, 0), 2, None, "k = 3 supports, but the support set has 2"),
        ((2,), 2, None, "names support slice 2"),
        ((0,), 2, [2], "no support slice has class 2"),
    ],
)
def test_requests_that_cannot_be_served(
    toys: Any, segmenter: Any, indices: tuple[int, ...], count: int, classes: list[int] | None, message: str
) -> None:
    with pytest.raises(SupportError, match=message):
        segmenter.segment(toys.queries[:1], [toys.Found.of(*indices)], toys.shapes(count), classes=classes)


def test_mask_and_image_of_different_size(toys: Any, segmenter: Any) -> None:
    support = toys.shapes(2)
    support.masks[1] = support.masks[1][:-1]
    with pytest.raises(SupportError, match=r"'slice-1' has an image of \(70, 90\) but a mask of \(69, 90\)"):
        segmenter.segment(toys.queries[:1], [toys.Found.of(0, 1)], support)


def test_nan_pixels(toys: Any, segmenter: Any) -> None:
    query = toys.queries[0].copy()
    query[3, 4] = np.nan
    with pytest.raises(PixelError, match="1 NaN or infinite pixels"):
        segmenter.segment([query], [toys.Found.of(0)], toys.shapes(1))


def test_the_number_of_threads_changes_no_bit(toys: Any, preset: Preset, settings: SegmentationSettings) -> None:
    support, threads = toys.shapes(6), torch.get_num_threads()
    outcomes = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            segmenter = load_segmenter(settings.model_copy(update={"batch_size": 2}), preset)
            outcomes.append(logits(segmenter, toys.queries, toys.found, support))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for others in outcomes[1:]:
        for one, other in zip(outcomes[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_already_in_the_bank_changes_no_bit(toys: Any, preset: Preset, settings: SegmentationSettings) -> None:
    support = toys.shapes(6)
    cold, warm = load_segmenter(settings, preset), load_segmenter(settings, preset)
    warm.segment(toys.queries[:1], [toys.Found.of(4, 1)], support, classes=[3])
    for one, other in zip(
        logits(cold, toys.queries, toys.found, support), logits(warm, toys.queries, toys.found, support), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_an_error_in_one_lane_reaches_the_caller(toys: Any, preset: Preset, settings: SegmentationSettings) -> None:
    queries = [query.copy() for query in toys.queries]
    queries[3][0, 0] = np.inf
    segmenter = load_segmenter(settings.model_copy(update={"batch_size": 1}), preset)
    with pytest.raises(PixelError):
        segmenter.segment(queries, toys.found, toys.shapes(6))

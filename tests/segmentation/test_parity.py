"""Parity of ``meta`` mode with the official ``SAM2VideoPredictor``, on random weights of the real sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rfss_core.segmentation.conversion import build_network, export_checkpoint, from_meta, to_meta
from rfss_core.segmentation.engine import MemorySegmenter
from rfss_core.segmentation.memory import MemoryBank
from rfss_core.segmentation.merging import ABSENT_LOGIT
from rfss_core.segmentation.meta_adapter import MetaAdapter
from rfss_core.segmentation.official import OfficialSegmenter, build_predictor, randomise, without_pointers
from rfss_core.segmentation.preprocess import to_native
from rfss_core.segmentation.transformers_adapter import TransformersAdapter
from rfss_core.segmentation.volume import Request, Track
from rfss_core.settings import SegmentationSettings

CPU, FLOAT32 = torch.device("cpu"), torch.float32
TOLERANCE = 1e-3


def randomised_predictor(size: str, version: str, image_size: int, seed: int) -> Any:
    """Official network whose constant and nearly-zero parameters got a random scale, so that no path is silent."""
    torch.manual_seed(seed)
    predictor = build_predictor(size, version, image_size)
    randomise(predictor)
    return predictor


def lift_object_scores(predictor: Any, by: float) -> None:
    with torch.no_grad():
        predictor.sam_mask_decoder.pred_obj_score_head.layers[2].bias.add_(by)


def engine(adapter: Any, *, pointers: bool = True, batch_size: int = 16, volume_memories: int = 0) -> MemorySegmenter:
    settings = SegmentationSettings(
        device="cpu", use_object_pointers=pointers, batch_size=batch_size, volume_memories=volume_memories
    )
    return MemorySegmenter(adapter, MemoryBank("parity", 2**30), settings, mode="meta", trained=False)


def assert_parity(ours: MemorySegmenter, theirs: OfficialSegmenter, queries: Any, found: Any, support: Any) -> None:
    for mine, official in zip(
        ours.segment(queries, found, support), theirs.segment(queries, found, support), strict=True
    ):
        np.testing.assert_allclose(mine.object_score, official.object_score, atol=TOLERANCE)
        gated = np.where((mine.object_score > 0)[:, None, None], mine.logits, ABSENT_LOGIT)
        np.testing.assert_allclose(gated, official.logits, atol=TOLERANCE, rtol=0)
        # A pixel whose winner is decided by less than the tolerance may fall either way.
        planes = np.sort(np.concatenate([np.zeros_like(official.logits[:1]), official.logits]), axis=0)
        clear = planes[-1] - planes[-2] > 2 * TOLERANCE
        np.testing.assert_array_equal(mine.labels[clear], official.labels[clear])


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize(("source", "k"), [("transformers", 1), ("transformers", 4), ("transformers", 16), ("meta", 4)])
def test_parity_with_the_official_predictor(toys: Any, source: str, version: str, k: int) -> None:
    predictor = randomised_predictor("t", version, 128, seed=k)
    lift_object_scores(predictor, 0.5)
    support = toys.shapes(k, without_square=(1, 3))
    adapter = (
        TransformersAdapter(build_network(predictor.state_dict(), 128), CPU, FLOAT32)
        if source == "transformers"
        else MetaAdapter(predictor, CPU, FLOAT32)
    )
    found = [toys.Found.of(*range(k)), toys.Found.of(*reversed(range(k)))][: 1 if k == 16 else 2]
    queries = toys.queries[: len(found)]
    assert_parity(engine(adapter), OfficialSegmenter(predictor), queries, found, support)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_parity_without_object_pointers(toys: Any, version: str) -> None:
    predictor = randomised_predictor("t", version, 128, seed=3)
    network = build_network(predictor.state_dict(), 128)
    without_pointers(predictor)
    ours = engine(TransformersAdapter(network, CPU, FLOAT32), pointers=False)
    assert_parity(ours, OfficialSegmenter(predictor), toys.queries[:1], [toys.Found.of(0, 1)], toys.shapes(2))


@pytest.mark.parametrize("lift", [-20.0, 20.0])
def test_parity_where_the_decoder_says_absent_and_where_it_says_present(toys: Any, lift: float) -> None:
    predictor = randomised_predictor("t", "2.1", 128, seed=4)
    lift_object_scores(predictor, lift)
    ours = engine(TransformersAdapter(build_network(predictor.state_dict(), 128), CPU, FLOAT32))
    assert_parity(ours, OfficialSegmenter(predictor), toys.queries[:1], [toys.Found.of(0, 1)], toys.shapes(2))


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_parity_of_a_class_that_no_retrieved_support_has(toys: Any, version: str) -> None:
    predictor = randomised_predictor("t", version, 128, seed=5)
    lift_object_scores(predictor, 1.0)
    ours = engine(TransformersAdapter(build_network(predictor.state_dict(), 128), CPU, FLOAT32))
    support = toys.shapes(3, without_square=(0, 1))
    assert_parity(ours, OfficialSegmenter(predictor), toys.queries[:1], [toys.Found.of(0, 1)], support)


@pytest.mark.parametrize("version", ["2.0", pytest.param("2.1", marks=pytest.mark.slow)])
def test_parity_of_hiera_large(toys: Any, version: str) -> None:
    predictor = randomised_predictor("l", version, 128, seed=6)
    lift_object_scores(predictor, 0.5)
    ours = engine(TransformersAdapter(build_network(predictor.state_dict(), 128), CPU, FLOAT32))
    found = [toys.Found.of(0, 1)]
    assert_parity(ours, OfficialSegmenter(predictor), toys.queries[:1], found, toys.shapes(2, without_square=(1,)))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize(
    ("size", "image_size", "k"),
    [("t", 1024, 1), ("t", 1024, 4), ("t", 1024, 16), ("l", 256, 1), ("l", 256, 16), ("l", 1024, 1)],
)
@pytest.mark.timeout(1800)
def test_parity_at_full_size(toys: Any, size: str, image_size: int, k: int, version: str) -> None:
    predictor = randomised_predictor(size, version, image_size, seed=7)
    lift_object_scores(predictor, 0.5)
    ours = engine(TransformersAdapter(build_network(predictor.state_dict(), image_size), CPU, FLOAT32), batch_size=1)
    support = toys.shapes(k, without_square=(1,))
    query = [toys.draw(100, (200, 170))[0]]
    assert_parity(ours, OfficialSegmenter(predictor), query, [toys.Found.of(*range(k))], support)


@pytest.mark.parametrize(
    ("size", "version"),
    [("t", "2.0"), ("t", "2.1"), ("s", "2.1"), ("b+", "2.1"), pytest.param("l", "2.1", marks=pytest.mark.slow)],
)
def test_parity_of_weights_after_conversion_there_and_back(size: str, version: str) -> None:
    state = build_predictor(size, version, 128).state_dict()
    network = build_network(state, 128)
    there = to_meta(network.state_dict())
    assert there.keys() == state.keys()
    assert all(torch.equal(there[name], value) for name, value in state.items())
    again = from_meta(there, network.state_dict())
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())


def test_parity_of_an_exported_checkpoint(tmp_path: Any) -> None:
    from sam2.build_sam import build_sam2

    network = build_network(randomised_predictor("t", "2.1", 1024, seed=8).state_dict())
    export_checkpoint(network, tmp_path / "exported.pt")
    official = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", str(tmp_path / "exported.pt"), device="cpu")
    assert all(torch.equal(to_meta(network.state_dict())[name], value) for name, value in official.state_dict().items())


def track(predictor: Any, toys: Any, k: int, order: tuple[int, ...]) -> Any:
    """The official predictor on the video of k supports and of slices in some order, and the request for ours."""
    support, values, found = toys.shapes(k, without_square=(1,)), [1, 3], toys.Found.of(*range(k))
    queries = [toys.draw(100 + row)[0] for row in range(len(order))]
    official = OfficialSegmenter(predictor).track([queries[row] for row in order], found, support, values)
    return official, Request(queries, [[list(range(k))] * 2] * len(order), support, values, limit=2)


def assert_parity_of_a_pass(ours: MemorySegmenter, predictor: Any, toys: Any, k: int, order: tuple[int, ...]) -> Any:
    official, request = track(predictor, toys, k, order)
    scores = np.stack([segmentation.object_score for segmentation in official], axis=1)
    for plane, passed in enumerate(ours.tracker.follow(request, [Track(plane, order) for plane in range(2)])):
        for mine, theirs in zip(passed, official, strict=True):
            np.testing.assert_allclose(mine.object_score[0], theirs.object_score[plane], atol=TOLERANCE)
            native = to_native(mine.logits, theirs.labels.shape)[0].numpy()
            gated = native if mine.object_score > 0 else np.full_like(native, ABSENT_LOGIT)
            np.testing.assert_allclose(gated, theirs.logits[plane], atol=TOLERANCE, rtol=0)
    return scores


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize(
    ("k", "order", "memories", "pointers"),
    [
        (2, tuple(range(7)), 6, 16),
        (3, (2, 1, 0), 6, 16),
        (2, (0, 1, 2, 3), 6, 0),
        (1, (0, 1, 2, 3, 4), 2, 4),
    ],
    ids=["forward", "reversed", "without-pointers", "few-memories-and-pointers"],
)
def test_parity_of_a_pass_through_a_volume(
    toys: Any, version: str, k: int, order: tuple[int, ...], memories: int, pointers: int
) -> None:
    predictor = randomised_predictor("t", version, 64, seed=9)
    lift_object_scores(predictor, 2.0)
    adapter = TransformersAdapter(build_network(predictor.state_dict(), 64), CPU, FLOAT32)
    if not pointers:
        without_pointers(predictor)
    predictor.max_obj_ptrs_in_encoder = pointers
    adapter.traits = replace(adapter.traits, max_pointers=pointers)
    # Fewer memories than the network was built for: the official one forgets the codes between.
    predictor.num_maskmem = memories + 1
    codes = predictor.maskmem_tpos_enc
    predictor.maskmem_tpos_enc = torch.nn.Parameter(torch.cat([codes[:memories], codes[-1:]]))
    ours = engine(adapter, pointers=pointers > 0, volume_memories=memories)
    assert (assert_parity_of_a_pass(ours, predictor, toys, k, order) > 0).all()


@pytest.mark.parametrize("source", ["transformers", pytest.param("meta", marks=pytest.mark.slow)])
def test_parity_of_a_pass_where_some_slices_lack_the_class(toys: Any, source: str) -> None:
    predictor, order = randomised_predictor("t", "2.1", 64, seed=9), tuple(range(7))
    head = predictor.sam_mask_decoder.pred_obj_score_head.layers[2]
    with torch.no_grad():
        # Scores of random weights hardly differ: spread them, and put zero between them.
        head.weight.mul_(100.0)
        official, _ = track(predictor, toys, 2, order)
        head.bias.sub_(float(np.median([segmentation.object_score for segmentation in official])))
    adapter = (
        TransformersAdapter(build_network(predictor.state_dict(), 64), CPU, FLOAT32)
        if source == "transformers"
        else MetaAdapter(predictor, CPU, FLOAT32)
    )
    scores = assert_parity_of_a_pass(engine(adapter, volume_memories=6), predictor, toys, 2, order)
    # The last slice is remembered by none.
    assert (scores[:, :-1] > 0).any()
    assert (scores[:, :-1] < 0).any()

"""Strategies: what each promises, against definitions written out in full."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.errors import SettingsError, SupportError
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.retrieval.strategies.diverse import marginal_relevance
from rfss_core.retrieval.strategies.region import patch_similarity, patch_weights
from rfss_core.settings import RetrievalSettings

DIM, TOKEN = 10, 5
CLASSES = {1: "a", 4: "b"}
STRATEGIES = ("dino", "random", "per-class", "diverse", "region")


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def tokens_of(n: int, seed: int, grid: tuple[int, int] = (3, 4)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [unit(rng.normal(size=(*grid, TOKEN))).astype(np.float16) for _ in range(n)]


def support_of(n: int, seed: int = 0, rare: float = 0.4) -> SupportSet:
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, 12, 16), np.uint8)
    for mask in masks:
        for value, share in ((1, 0.6), (4, rare)):
            if rng.random() < share:
                row, column = rng.integers(0, 9), rng.integers(0, 13)
                mask[row : row + 3, column : column + 3] = value
    masks[0, 0, 0], masks[0, 0, 1] = 1, 4
    support = SupportSet.from_arrays(
        rng.random((n, 12, 16)).astype(np.float32), masks, [str(i % 6) for i in range(n)], CLASSES
    )
    return support.with_embeddings(rng.normal(size=(n, DIM))).with_patches(tokens_of(n, seed + 1).__getitem__)


def search(support: SupportSet, k: int, seed: int = 0, rows: slice = slice(None), **asked: Any) -> list[Neighbours]:
    """Retrieve for 9 fixed queries, or some of them."""
    queries = np.random.default_rng(99).normal(size=(9, DIM))
    patients, names = [str(i % 8) for i in range(9)], [f"q{i}" for i in range(9)]
    retriever = Retriever(support, RetrievalSettings(**asked), seed)
    tokens = tokens_of(9, 77)
    return retriever.search(queries[rows], names[rows], patients[rows], k, patches=tokens[rows])


def same(first: list[Neighbours], second: list[Neighbours]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a.indices, b.indices)
        and np.array_equal(a.distances, b.distances)
        and all(np.array_equal(a.for_class(value), b.for_class(value)) for value in CLASSES)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_query_does_not_depend_on_its_company(strategy: str) -> None:
    support = support_of(40)
    whole = search(support, 5, strategy=strategy)
    parts = [
        hit for i in (8, 0, 3, 1, 2, 7, 4, 5, 6) for hit in search(support, 5, rows=slice(i, i + 1), strategy=strategy)
    ]
    order = [8, 0, 3, 1, 2, 7, 4, 5, 6]
    assert same([whole[i] for i in order], parts)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_the_filter_and_the_patient(strategy: str) -> None:
    support = support_of(60)
    found = search(support, 3, strategy=strategy, filter={"contains": [1]})
    for i, hit in enumerate(found):
        assert support.class_presence[hit.indices, 0].all()
        assert str(i % 8) not in {support.patients[row] for row in hit.indices}
        assert len(set(hit.indices.tolist())) == len(hit) >= 3
        assert hit.indices.dtype == np.int64
        assert hit.distances.dtype == np.float32


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(14, 60),
    k=st.integers(1, 10),
    share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    rare=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 500),
)
def test_each_class_gets_its_own_nearest_and_a_share_without_it(
    n: int, k: int, share: float, rare: float, seed: int
) -> None:
    support = support_of(n, seed, rare)
    assert support.embeddings is not None
    queries = unit(np.random.default_rng(99).normal(size=(9, DIM)))
    for i, hit in enumerate(search(support, k, strategy="per-class", absent_share=share)):
        others = [row for row in range(n) if support.patients[row] != str(i % 8)]
        near = sorted(others, key=lambda row: ((support.embeddings[row] - queries[i]) ** 2).sum())
        for column, value in enumerate(CLASSES):
            own = hit.for_class(value).tolist()
            holds = [row for row in near if support.class_presence[row, column]]
            lacks = [row for row in near if not support.class_presence[row, column]]
            negatives = sum(row in lacks for row in own)
            assert len(own) == len(set(own)) == k
            # A short kind is filled up by the other, and only then.
            assert negatives == min(len(lacks), max(round(k * share), k - len(holds)))
            assert set(own) == {*holds[: k - negatives], *lacks[:negatives]}
        assert set(hit.indices.tolist()) == {int(row) for value in CLASSES for row in hit.for_class(value)}
        assert (np.diff(hit.distances) >= 0).all()
        assert hit.fewest == k


@settings(deadline=None, max_examples=12)
@given(n=st.integers(14, 60), k=st.integers(1, 10), candidates=st.integers(1, 5), seed=st.integers(0, 500))
def test_without_diversity_the_nearest_are_taken(n: int, k: int, candidates: int, seed: int) -> None:
    support = support_of(n, seed)
    plain = search(support, k, strategy="dino")
    assert same(plain, search(support, k, strategy="diverse", diversity=0, candidates=candidates))
    # As many candidates as places leave no choice, only an order.
    for ours, nearest in zip(search(support, k, strategy="diverse", diversity=0.7, candidates=1), plain, strict=True):
        assert sorted(ours.indices.tolist()) == sorted(nearest.indices.tolist())
        assert ours.indices[0] == nearest.indices[0]


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 25), k=st.integers(1, 12), diversity=st.floats(0, 1), seed=st.integers(0, 1000))
def test_marginal_relevance_is_the_papers(n: int, k: int, diversity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, vectors = unit(rng.normal(size=DIM)), unit(rng.normal(size=(n, DIM))).astype(np.float32)
    distances = ((vectors - query) ** 2).sum(axis=1)
    order = np.argsort(distances, kind="stable")
    vectors, distances = vectors[order], distances[order].astype(np.float32)
    chosen = marginal_relevance(distances, vectors, k, diversity).tolist()
    likeness = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    assert len(chosen) == len(set(chosen)) == min(k, n)
    assert chosen[0] == 0
    for place in range(1, len(chosen)):
        before = chosen[:place]
        gain = {
            row: (1 - diversity) * (1 - float(distances[row]) / 2)
            - diversity * max(likeness[row, one] for one in before)
            for row in range(n)
            if row not in before
        }
        assert gain[chosen[place]] >= max(gain.values()) - 1e-5


def test_copies_do_not_fill_the_places() -> None:
    rng = np.random.default_rng(4)
    query = np.zeros(DIM)
    query[0] = 1
    copies = query + 0.01 * rng.normal(size=(5, DIM))
    others = query + 0.4 * rng.normal(size=(15, DIM))
    support = SupportSet.from_arrays(np.zeros((20, 4, 4), np.float32), np.ones((20, 4, 4), np.uint8))
    support = support.with_embeddings(np.concatenate([copies, others]))

    def copies_among(**asked: Any) -> int:
        [hit] = Retriever(support, RetrievalSettings(**asked)).search(query[None], ["q"], [None], 4)
        return int((hit.indices < 5).sum())

    assert copies_among(strategy="dino") == 4
    assert copies_among(strategy="diverse", diversity=0.6) == 1


def brute_similarity(query: np.ndarray, support: np.ndarray, weights: np.ndarray) -> float:
    total = 0.0
    for row in range(support.shape[0]):
        for column in range(support.shape[1]):
            best = max(float(np.dot(q, support[row, column])) for q in query.reshape(-1, query.shape[2]).astype(float))
            total += weights[row, column] * best
    return total


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 500), region=st.sampled_from([0.0, 0.5, 1.0]))
def test_similarity_is_the_weighted_best_match(seed: int, region: float) -> None:
    rng = np.random.default_rng(seed)
    query, other = unit(rng.normal(size=(3, 2, TOKEN))), unit(rng.normal(size=(4, 3, TOKEN)))
    mask = (rng.random((9, 9)) < 0.2).astype(np.uint8)
    [weights] = patch_weights([mask], [(4, 3)], region)
    assert weights.sum() == pytest.approx(1)
    assert patch_similarity(query, other, weights) == pytest.approx(brute_similarity(query, other, weights), abs=1e-6)
    assert patch_similarity(other, other, weights) == 1


@settings(deadline=None, max_examples=20)
@given(n=st.integers(14, 40), k=st.integers(1, 6), seed=st.integers(0, 500))
def test_with_even_weights_masks_do_not_matter(n: int, k: int, seed: int) -> None:
    support = support_of(n, seed)
    tokens, queries = tokens_of(n, seed + 1), tokens_of(9, 77)
    even = np.full((3, 4), 1 / 12)
    pools = search(support, min(4 * k, n - n // 6 - 1), strategy="dino")
    found = search(support, k, strategy="region", region_weight=0)
    for i, (hit, pool) in enumerate(zip(found, pools, strict=True)):
        whole = dict(zip(pool.indices.tolist(), 1 - pool.distances.astype(float) / 2, strict=True))
        scores = {row: whole[row] + patch_similarity(queries[i], tokens[row], even) for row in whole}
        best = sorted(scores, key=lambda row: -scores[row])
        if len(pool) == 4 * k:
            assert hit.indices.tolist() == best[:k]


def test_weights_lie_on_the_masks_and_classes_weigh_alike() -> None:
    large, small, empty = (np.zeros((12, 16), np.uint8) for _ in range(3))
    large[:6, :8] = 1
    small[:6, :8], small[11, 15] = 1, 4
    weights = patch_weights([large, small, empty], [(6, 8), (6, 8), (3, 4)], 1.0)
    assert weights[0][:3, :4].sum() == pytest.approx(1)
    assert weights[1][5, 7] == pytest.approx(0.5)
    assert weights[1][:3, :4].sum() == pytest.approx(0.5)
    # Without a mask of its own: where the others' are, on its own grid.
    assert weights[2].sum() == pytest.approx(1)
    assert weights[2][:2, :2].sum() > 0.7
    assert np.allclose(patch_weights([empty], [(3, 4)], 1.0)[0], 1 / 12)
    for one in patch_weights([large, small, empty], [(6, 8), (6, 8), (3, 4)], 0.25):
        assert one.min() >= 0.75 / one.size - 1e-12


def test_a_small_structure_decides_where_the_slice_does_not() -> None:
    """Two candidates look alike but for one patch, the structure; the query shows that of the farther one."""
    rng = np.random.default_rng(0)
    common = unit(rng.normal(size=(4, 4, TOKEN)))
    structure = [unit(rng.normal(size=TOKEN)) for _ in range(2)]
    tokens = [common.copy(), common.copy()]
    for one, seen in zip(tokens, structure, strict=True):
        one[1, 2] = seen
    # What else is in the slices speaks for the wrong one.
    query = tokens[1].copy()
    query[0, 0], tokens[1][3, 3] = unit(rng.normal(size=TOKEN)), unit(rng.normal(size=TOKEN))
    tokens[1][2, 1], tokens[1][0, 3] = unit(rng.normal(size=TOKEN)), unit(rng.normal(size=TOKEN))
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[:, 4:8, 8:12] = 1
    support = SupportSet.from_arrays(np.zeros((2, 16, 16), np.float32), masks)
    embeddings = np.eye(2, DIM) + np.array([[0.0], [8.0]]) * np.eye(1, DIM)
    support = support.with_embeddings(embeddings).with_patches(tokens.__getitem__)

    def first(**asked: Any) -> int:
        search = Retriever(support, RetrievalSettings(**asked))
        [hit] = search.search(np.eye(1, DIM), ["q"], [None], 1, patches=[query])
        return int(hit.indices[0])

    assert first(strategy="dino") == 0
    assert first(strategy="region", region_weight=0) == 0
    assert first(strategy="region", region_weight=0.9) == 1


def test_patches_go_with_their_rows() -> None:
    support = support_of(12)
    tokens = tokens_of(12, 1)
    part = support.subset([5, 9])
    assert np.array_equal(part.patches(1), tokens[9])
    assert np.array_equal(support.patches(3), tokens[3])
    plain = SupportSet.from_arrays(np.zeros((2, 4, 4), np.float32), np.ones((2, 4, 4), np.uint8))
    plain = plain.with_embeddings(np.eye(2))
    with pytest.raises(SupportError, match="no patch tokens"):
        plain.patches(0)
    with pytest.raises(SupportError, match="with_patches"):
        Retriever(plain, RetrievalSettings(strategy="region"))
    with pytest.raises(SettingsError, match="pass the queries'"):
        Retriever(support, RetrievalSettings(strategy="region")).search(np.ones((1, DIM)), ["q"], [None], 1)
    with pytest.raises(SupportError, match="3 components, the support set's 5"):
        patch_similarity(np.ones((2, 2, 3)), np.ones((2, 2, 5)), np.full((2, 2), 0.25))

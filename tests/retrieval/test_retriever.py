"""Retrieval: known neighbours, excluded patients, reproducible draws, real slices."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.embedding import load_embedder
from rfss_core.errors import PixelError, SettingsError, SupportError, TooFewSupportsError
from rfss_core.presets import PRESETS
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.settings import EmbeddingSettings, RetrievalSettings, Strategy

IMAGE = np.zeros((4, 4), dtype=np.float32)
MASK = np.ones((4, 4), dtype=np.uint8)


def support_of(patients: list[str], dim: int = 12, seed: int = 0) -> SupportSet:
    n = len(patients)
    embeddings = np.random.default_rng(seed).normal(size=(n, dim))
    return SupportSet(
        [f"{i:04d}" for i in range(n)],
        patients,
        {1: "x"},
        lambda _: IMAGE,
        lambda _: MASK,
        class_presence=np.ones((n, 1)),
        embeddings=embeddings,
    )


def retriever(support: SupportSet, strategy: Strategy = "dino", seed: int = 0, **more: int) -> Retriever:
    return Retriever(support, RetrievalSettings(strategy=strategy, **more), seed)


def vectors(support: SupportSet) -> np.ndarray:
    assert support.embeddings is not None
    return support.embeddings


def same(first: list[Neighbours], second: list[Neighbours]) -> bool:
    return all(
        np.array_equal(a.indices, b.indices) and np.array_equal(a.distances, b.distances)
        for a, b in zip(first, second, strict=True)
    )


def test_a_support_slice_finds_itself_unless_its_patient_is_its_own() -> None:
    support = support_of(["a", "a", "b", "b", "c", "c"])
    search = retriever(support)
    for i, found in enumerate(search.search(vectors(support), support.ids, [None] * 6, 2)):
        assert found.indices[0] == i
        assert found.distances[0] == 0
    for i, found in enumerate(search.search(vectors(support), support.ids, support.patients, 6, fewer=True)):
        assert len(found) == 4
        assert support.patients[i] not in {support.patients[row] for row in found.indices}
        assert found.distances[0] > 0


def test_half_precision_queries_find_the_same() -> None:
    support = support_of([str(i % 9) for i in range(50)], dim=96)
    found = retriever(support).search(vectors(support).astype(np.float16), support.ids, [None] * 50, 1)
    assert [int(row.indices[0]) for row in found] == list(range(50))


owners = st.lists(st.sampled_from("abcde"), min_size=1, max_size=30)


@settings(deadline=None, max_examples=80)
@given(
    patients=owners,
    asked=st.lists(st.sampled_from([*"abcdefg", None]), min_size=1, max_size=12),
    k=st.integers(1, 40),
    strategy=st.sampled_from(["dino", "random"]),
    limit=st.one_of(st.none(), st.integers(1, 30)),
    seed=st.integers(0, 1000),
)
def test_never_an_own_patient_and_never_fewer_than_there_are(
    patients: list[str], asked: list[str | None], k: int, strategy: Strategy, limit: int | None, seed: int
) -> None:
    support = support_of(patients, seed=seed)
    settings_ = RetrievalSettings(strategy=strategy, support_slices=limit)
    queries = np.random.default_rng(seed + 1).normal(size=(len(asked), 12))
    names = [str(i) for i in range(len(asked))]
    drawn = set(range(len(patients))) if limit is None else set(support.draw(limit, seed).tolist())
    left = [{row for row in drawn if patients[row] != patient} for patient in asked]
    search = Retriever(support, settings_, seed)
    if not all(left):
        with pytest.raises(TooFewSupportsError, match="query's own"):
            search.search(queries, names, asked, k, fewer=True)
        return
    if any(len(rows) < k for rows in left):
        with pytest.raises(TooFewSupportsError, match=f"k = {k} support slices, but only .* are left"):
            search.search(queries, names, asked, k)
    for found, rows, query in zip(search.search(queries, names, asked, k, fewer=True), left, queries, strict=True):
        assert len(found.indices) == len(set(found.indices.tolist())) == min(k, len(rows))
        assert set(found.indices.tolist()) <= rows
        unit = query / np.linalg.norm(query)
        true = ((vectors(support)[found.indices] - unit) ** 2).sum(axis=1)
        assert np.allclose(found.distances, true, atol=1e-6)
        assert found.indices.dtype == np.int64
        assert found.distances.dtype == np.float32
        if strategy == "dino":
            others = sorted(((vectors(support)[row] - unit) ** 2).sum() for row in rows)
            assert np.allclose(found.distances, others[: len(found)], atol=1e-6)


@pytest.mark.parametrize("strategy", ["dino", "random"])
def test_chunks_of_queries_change_nothing(strategy: Strategy) -> None:
    support = support_of([str(i % 7) for i in range(60)])
    queries = np.random.default_rng(5).normal(size=(40, 12))
    names, patients = [f"q{i}" for i in range(40)], [str(i % 9) for i in range(40)]
    whole = retriever(support, strategy).search(queries, names, patients, 5)
    parts: list[Neighbours] = []
    for start in (0, 1, 8, 25):
        stop = {0: 1, 1: 8, 8: 25, 25: 40}[start]
        rows = slice(start, stop)
        parts += retriever(support, strategy).search(queries[rows], names[rows], patients[rows], 5)
    assert same(whole, parts)


def test_random_draws_follow_the_seed_and_the_query_and_are_uniform() -> None:
    support = support_of(["a"] * 10 + ["b"] * 10)
    queries = np.ones((2000, 12))
    names = [f"q{i}" for i in range(2000)]
    found = retriever(support, "random", seed=1).search(queries, names, ["a"] * 2000, 3)
    assert same(found, retriever(support, "random", seed=1).search(queries, names, ["a"] * 2000, 3))
    assert not same(found, retriever(support, "random", seed=2).search(queries, names, ["a"] * 2000, 3))
    counts = np.bincount(np.concatenate([row.indices for row in found]), minlength=20)
    assert not counts[:10].any()
    # 600 draws of each are expected, with a standard deviation of 20.
    assert np.abs(counts[10:] - 600).max() < 100


def test_support_slices_limits_what_is_retrieved() -> None:
    support = support_of([str(i % 5) for i in range(30)])
    found = retriever(support, seed=4, support_slices=6).search(
        vectors(support), support.ids, [None] * 30, 30, fewer=True
    )
    drawn = support.draw(6, 4).tolist()
    assert all(sorted(row.indices.tolist()) == drawn for row in found)


def test_nothing_left_and_nonsense_are_typed() -> None:
    support = support_of(["a", "a", "b"])
    search = retriever(support)
    with pytest.raises(TooFewSupportsError, match=r"only 0 of 2 are left.*'a'.*more patients"):
        retriever(support.subset([0, 1])).search(np.ones((1, 12)), ["q"], ["a"], 2, fewer=True)
    with pytest.raises(SupportError, match="5 components, the support set's 12"):
        search.search(np.ones((1, 5)), ["q"], [None], 2)
    with pytest.raises(SettingsError, match="k must be at least 1"):
        search.search(np.ones((1, 12)), ["q"], [None], 0)
    with pytest.raises(SettingsError, match="2 query ids"):
        search.search(np.ones((1, 12)), ["q", "r"], [None], 2)
    for bad in (np.zeros(12), np.full(12, np.nan)):
        with pytest.raises(PixelError, match="'r'"):
            search.search(np.stack([np.ones(12), bad]), ["q", "r"], [None, None], 2)
    with pytest.raises(SupportError, match="no embeddings"):
        retriever(SupportSet(["x"], ["a"], {1: "x"}, lambda _: IMAGE, lambda _: MASK))
    assert search.search(np.ones((0, 12)), [], [], 2) == []


def test_real_slices_are_embedded_and_retrieved(shared_data: Path) -> None:
    images, masks, patients = [], [], []
    for path in sorted((shared_data / "acdc" / "images").glob("*.nii.gz"))[:20]:
        volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
        labels = np.asarray(nibabel.load(shared_data / "acdc" / "labels" / path.name).dataobj).astype(np.uint8)
        low, high = np.percentile(volume, (0.5, 99.5))
        volume = np.clip((volume - low) / (high - low), 0, 1)
        for z in (2, volume.shape[2] // 2, volume.shape[2] - 2)[: 3 if len(images) < 48 else 2]:
            images.append(volume[..., z])
            masks.append(labels[..., z])
            patients.append(path.name.split("_")[0])
    images, masks, patients = images[:50], masks[:50], patients[:50]
    assert len(images) == 50
    embedder = load_embedder(EmbeddingSettings(), PRESETS["tiny"], "cpu")
    support = SupportSet.from_arrays(images, masks, patients, {1: "RV", 2: "Myo", 3: "LV"})
    support = support.with_embeddings(embedder.embed(images))
    search = retriever(support)
    themselves = search.search(vectors(support), support.ids, [None] * 50, 1)
    assert [int(found.indices[0]) for found in themselves] == list(range(50))
    for found, patient in zip(search.search(vectors(support), support.ids, support.patients, 8), patients, strict=True):
        assert len(found) == 8
        assert patient not in {patients[row] for row in found.indices}
    # The other cardiac phase of a patient looks more alike than other patients do, trained or not.
    nearest = search.search(vectors(support), support.ids, [None] * 50, 2)
    own = np.mean(
        [patients[int(found.indices[1])] == patient for found, patient in zip(nearest, patients, strict=True)]
    )
    assert own > 0.5

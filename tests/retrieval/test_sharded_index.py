"""Any number of shards against one, and against exact search."""

from __future__ import annotations

import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexes import DIM, clustered, queries, settings_of, stored_index

from rfss_core.errors import RecallWarning, SettingsError, SupportError
from rfss_core.retrieval import FlatIndex, sharded
from rfss_core.retrieval.building import build
from rfss_core.retrieval.generations import Generations
from rfss_core.retrieval.merged import merge_on_disk
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import ArraySource
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.store import Files

KINDS = ("ivf-flat", "ivf-sq8")


def exact(vectors: np.ndarray) -> FlatIndex:
    return FlatIndex(unit_vectors(vectors)[0])


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(60, 700),
    shard_rows=st.integers(20, 700),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
    copies=st.booleans(),
    share=st.sampled_from([1.0, 0.6, 0.2, 0.01]),
    exact_rows=st.sampled_from([1, 100, 1000]),
    merge=st.booleans(),
)
def test_shards_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    shard_rows: int,
    kind: str,
    seed: int,
    copies: bool,
    share: float,
    exact_rows: int,
    merge: bool,
) -> None:
    vectors, asked = clustered(rows, seed, copies), queries(20, seed + 1)
    allowed = np.random.default_rng(seed).random(rows) < share
    allowed[0] = True
    with warnings.catch_warnings():
        # So few rows have few held-out queries: the target may be missed, and the shards must still agree.
        warnings.simplefilter("ignore", RecallWarning)
        one, _ = stored_index(
            tmp_path_factory.mktemp("one"), vectors, kind=kind, shard_rows=rows, exact_rows=exact_rows
        )
        many, _ = stored_index(
            tmp_path_factory.mktemp("many"),
            vectors,
            kind=kind,
            shard_rows=shard_rows,
            exact_rows=exact_rows,
            merge=merge,
        )
    assert (many.generation.joined is not None) == (merge and shard_rows < rows)
    assert len(many.generation.shards) == -(-rows // shard_rows)
    assert many.tuning == one.tuning
    for filtered in (None, allowed):
        found, expected = many.search(asked, 8, filtered), one.search(asked, 8, filtered)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
    nlist = many.generation.trained.nlist
    k = min(8, int(allowed.sum()))
    rows_of_all, distances = many.probe(asked, k, allowed, nlist, factor=rows)
    truth = exact(vectors).search(asked, k, allowed)
    assert np.array_equal(rows_of_all, truth[0])
    assert np.array_equal(distances, truth[1])


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(4000)


@pytest.fixture(scope="module", params=[*KINDS, "ivf-pq"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardedIndex:
    rows = 20_000 if request.param == "ivf-pq" else 4000
    # Level 1.0 alone is tuned where so few rows count as few.
    values = {"kind": request.param, "shard_rows": 1500, "exact_rows": rows // 2}
    return stored_index(tmp_path_factory.mktemp("index"), clustered(rows), **values)[0]


def test_new_patients_find_what_the_manifest_promises(index: ShardedIndex) -> None:
    asked = queries(400, seed=1234)
    truth = exact(clustered(index.size)).search(asked, 8)[0]
    found, _ = index.search(asked, 8)
    recall = (found[:, :, None] == truth[:, None, :]).any(axis=2).mean()
    assert index.tuning.met
    assert recall > 0.98


def test_a_result_depends_on_its_query_alone(index: ShardedIndex) -> None:
    asked = queries(150)
    together = index.search(asked, 8)
    for i in (0, 77, 149):
        alone = index.search(asked[i : i + 1], 8)
        assert np.array_equal(alone[0][0], together[0][i])
        assert np.array_equal(alone[1][0], together[1][i])
    backwards = index.search(asked[::-1], 8)
    assert np.array_equal(backwards[0][::-1], together[0])


def test_threads_do_not_matter(tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    # Queries are cut in parts and blocks of parts.
    monkeypatch.setattr(sharded, "_ASSIGNED", 600)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        _, one = stored_index(tmp_path / "one", vectors)
        faiss.omp_set_num_threads(3)
        _, three = stored_index(tmp_path / "three", vectors)
        assert one.read() == three.read()
        asked = queries(1500)
        single, several = ShardedIndex(one, threads=1), ShardedIndex(three, threads=3)
        assert all(map(np.array_equal, single.search(asked, 8), several.search(asked, 8)))
    finally:
        faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> ShardedIndex:
    return stored_index(tmp_path_factory.mktemp("filtered"), vectors, shard_rows=900, exact_rows=40)[0]


@pytest.mark.parametrize("left", [1, 5, 40, 41, 300, 3000])
def test_filters_hold_before_the_nearest_are_taken(filtered: ShardedIndex, vectors: np.ndarray, left: int) -> None:
    index = filtered
    asked = queries(40)
    # The rows farthest from the first query: no list near it holds any.
    far = np.argsort(unit_vectors(vectors)[0] @ asked[0])[:left]
    allowed = np.zeros(len(vectors), dtype=bool)
    allowed[far] = True
    rows, distances = index.search(asked, 8, allowed)
    assert rows.shape == (40, min(8, left))
    assert allowed[rows].all()
    assert (np.diff(distances, axis=1) >= 0).all()
    if left <= 40:
        truth = exact(vectors).search(asked, 8, allowed)
        assert np.array_equal(rows, truth[0])
        assert np.array_equal(distances, truth[1])


def test_ties_wider_than_the_first_look_are_ordered_by_row(tmp_path: Path) -> None:
    vectors = clustered(2000)
    vectors[500:700] = vectors[0]
    for kind in KINDS:
        index, _ = stored_index(tmp_path / kind, vectors, kind=kind, shard_rows=450)
        rows, distances = index.search(unit_vectors(vectors[:1])[0], 8)
        assert rows.tolist() == [[0, *range(500, 507)]]
        assert not distances.any()


def test_bad_queries_are_refused(index: ShardedIndex) -> None:
    good = queries(3)
    for bad in (np.full((1, DIM), np.nan), np.zeros((1, DIM)), 3 * good, np.full((1, DIM), np.inf)):
        with pytest.raises(SupportError, match="squared length"):
            index.search(np.concatenate([good, bad.astype(np.float32)]), 8)
    with pytest.raises(SupportError, match="components"):
        index.search(good[:, 1:], 8)
    with pytest.raises(SupportError, match="no row"):
        index.search(good, 8, np.zeros(index.size, dtype=bool))
    with pytest.raises(SupportError, match="filter has shape"):
        index.search(good, 8, np.ones(index.size - 1, dtype=bool))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0])
def test_bad_vectors_are_refused_by_their_row(tmp_path: Path, vectors: np.ndarray, bad: float) -> None:
    spoilt = vectors.copy()
    spoilt[3210] = bad
    generations = Generations(Files(tmp_path), "index")
    with pytest.raises(SupportError, match="row 3210"):
        # Fewer training vectors than rows: the shard finds it, wherever it is.
        build(ArraySource(spoilt), settings_of(nlist=4, train_points=39, shard_rows=1000), generations, 8)
    assert generations.names() == []


def test_k_beyond_the_tuned_one_is_told(filtered: ShardedIndex) -> None:
    index = filtered
    with pytest.warns(RecallWarning, match="tuned at k = 8"):
        assert index.search(queries(2), 9)[0].shape == (2, 9)


def test_a_target_that_is_missed_is_told_and_written(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.warns(RecallWarning, match="of the true neighbours"):
        _, generations = stored_index(tmp_path, vectors, nprobe=1, target_recall=1.0)
    tuning = generations.read().tuning
    assert not tuning.met
    assert tuning.levels[0].nprobe == 1
    assert tuning.levels[0].recall < 1


def test_an_exact_index_is_not_stored(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(SettingsError, match="FlatIndex"):
        build(ArraySource(vectors), settings_of(kind="auto"), Generations(Files(tmp_path), "index"), 8)


def test_the_merged_index_finds_the_same_wherever_it_lies(tmp_path: Path, vectors: np.ndarray) -> None:
    index, generations = stored_index(tmp_path / "store", vectors, shard_rows=900)
    path = merge_on_disk(generations, index.generation, tmp_path / "merged")
    moved = path.parent.rename(tmp_path / "elsewhere") / path.name
    merged = faiss.read_index(str(moved), faiss.IO_FLAG_ONDISK_SAME_DIR)
    asked = queries(50)
    found, expected = merged.search(asked, 8), index.search(asked, 8)
    assert merged.ntotal == len(vectors)
    assert np.allclose(found[0], expected[1], atol=1e-5)
    assert (found[1] == expected[0]).mean() > 0.99

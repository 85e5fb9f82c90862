"""Exact search against brute force."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.errors import SupportError
from rfss_core.retrieval import FlatIndex
from rfss_core.retrieval.vectors import unit_vectors


def units(n: int, dim: int, seed: int, copies: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, dim))
    if copies:
        rows = rows[rng.integers(0, max(1, n // 4), n)]
    return unit_vectors(rows)[0]


def brute_force(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    distances = ((queries[:, None].astype(np.float64) - vectors[None].astype(np.float64)) ** 2).sum(axis=2)
    if allowed is not None:
        distances[:, ~allowed] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 70),
    dim=st.sampled_from([1, 3, 48]),
    queries=st.integers(1, 40),
    k=st.integers(1, 80),
    seed=st.integers(0, 2**31),
    copies=st.booleans(),
    filtered=st.booleans(),
)
def test_it_equals_brute_force(n: int, dim: int, queries: int, k: int, seed: int, copies: bool, filtered: bool) -> None:
    vectors = units(n, dim, seed, copies)
    asked = np.concatenate([units(queries, dim, seed + 1), vectors[: n // 2]])
    allowed = np.random.default_rng(seed).random(n) < 0.5 if filtered else None
    left = n if allowed is None else int(allowed.sum())
    index = FlatIndex(vectors)
    if left == 0:
        with pytest.raises(SupportError, match="no row"):
            index.search(asked, k, allowed)
        return
    rows, distances = index.search(asked, k, allowed)
    expected_rows, expected = brute_force(vectors, asked, min(k, left), allowed)
    assert rows.dtype == np.int64
    assert distances.dtype == np.float32
    assert np.array_equal(rows, expected_rows)
    assert np.allclose(distances, expected, atol=1e-6)


def test_ties_wider_than_the_first_look_are_ordered_by_index() -> None:
    vectors = np.repeat(units(1, 8, 0), 500, axis=0)
    rows, distances = FlatIndex(vectors).search(vectors[:3], 7)
    assert rows.tolist() == [list(range(7))] * 3
    assert not distances.any()


def test_what_float32_cannot_tell_apart_is_ranked_exactly() -> None:
    rng = np.random.default_rng(3)
    vectors = unit_vectors(units(1, 64, 0) + rng.normal(scale=1e-7, size=(400, 64)))[0]
    queries = units(20, 64, 1)
    rows, _ = FlatIndex(vectors).search(queries, 5)
    assert np.array_equal(rows, brute_force(vectors, queries, 5, None)[0])


def test_a_result_does_not_depend_on_its_company() -> None:
    vectors, queries = units(3000, 32, 1), units(200, 32, 2)
    index = FlatIndex(vectors, threads=2)
    rows, distances = index.search(queries, 9)
    for i in (0, 57, 199):
        row, distance = index.search(queries[i : i + 1], 9)
        assert np.array_equal(row[0], rows[i])
        assert np.array_equal(distance[0], distances[i])


def test_threads_are_faisss() -> None:
    before = faiss.omp_get_max_threads()
    try:
        FlatIndex(units(4, 3, 0), threads=1).search(units(2, 3, 1), 1)
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.omp_set_num_threads(before)


def test_other_dimensions_and_emptiness_are_refused() -> None:
    with pytest.raises(SupportError, match="4 components"):
        FlatIndex(units(5, 4, 0)).search(units(2, 3, 0), 1)
    with pytest.raises(SupportError, match=r"\(0, 4\)"):
        FlatIndex(np.zeros((0, 4), dtype=np.float32))


@given(st.integers(0, 2**31))
def test_unit_vectors_find_what_has_no_direction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(6, 5))
    vectors[1], vectors[3, 2], vectors[4, 0] = 0, np.nan, np.inf
    result, bad = unit_vectors(vectors)
    assert bad.tolist() == [1, 3, 4]
    assert np.allclose(np.linalg.norm(result, axis=1), [1, 0, 1, 0, 0, 1], atol=1e-6)

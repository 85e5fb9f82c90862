"""Near-duplicates: the groups of a brute-force search, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from rfss_core.retrieval import near_duplicates, unit_vectors


def brute_force(vectors: np.ndarray, distance: float) -> list[list[int]]:
    wide = vectors.astype(np.float64)
    near = np.square(wide[:, None] - wide[None]).sum(axis=2) <= distance**2
    _, labels = connected_components(near, directed=False)
    groups = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    return sorted(group for group in groups if len(group) > 1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from([0.0, 0.01, 0.05, 0.3, 2.0]),
    block=st.integers(1, 70),
    dim=st.sampled_from([2, 9, 64]),
)
def test_groups_are_those_of_brute_force(seed: int, distance: float, block: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(30, dim))
    near = base[:20] + rng.normal(size=(20, dim)) * rng.choice([0.0, 0.002, 0.02, 0.1], size=(20, 1))
    vectors, _ = unit_vectors(np.concatenate([base, near, base[:5]]))
    found = near_duplicates(vectors, ["p"] * len(vectors), distance, block)
    assert [group.rows.tolist() for group in found] == brute_force(vectors, distance)
    assert not any(group.across_patients for group in found)


def test_equal_embeddings_of_two_patients_are_told() -> None:
    vectors, _ = unit_vectors(np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]))
    groups = near_duplicates(vectors, ["b", "a", "a", "a", "a"], 0.0)
    assert [(group.rows.tolist(), group.patients, group.across_patients) for group in groups] == [
        ([0, 2], ("a", "b"), True),
        ([1, 4], ("a",), False),
    ]


def test_chains_are_one_group_and_a_blank_store_is_no_trouble() -> None:
    angles = np.arange(5) * 0.01
    chain, _ = unit_vectors(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert [group.rows.tolist() for group in near_duplicates(chain, list("abcde"), 0.0101)] == [[0, 1, 2, 3, 4]]
    assert near_duplicates(chain, list("abcde"), 0.0099) == []
    blank, _ = unit_vectors(np.ones((20_000, 8)))
    assert [len(group.rows) for group in near_duplicates(blank, ["p"] * 20_000, 0.02)] == [20_000]
    assert near_duplicates(chain[:1], ["a"], 2.0) == []


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_signs_of_zero_make_no_difference(sign: float) -> None:
    vectors = np.array([[0.0, 1.0], [sign * 0.0, 1.0]], dtype=np.float32)
    assert len(near_duplicates(vectors, ["a", "b"], 0.0)) == 1

"""Coverage and core sets: guarantees against brute force, and what a choice may not depend on."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances_argmin_min

from rfss_core.errors import InputError, SettingsError
from rfss_core.retrieval import SlicePool, SupportSet, choose_core_set, draw_evenly, unit_vectors
from rfss_core.retrieval.coverage import NearestChosen, curve_counts, grow
from rfss_core.retrieval.facility_location import facility_location
from rfss_core.settings import SelectionSettings

OBJECTIVES = ("mean", "radius")


def pool_of(seed: int, slices: int, patients: int = 4, labelled: int = 0, dim: int = 5, twins: int = 0) -> SlicePool:
    """Clustered unit vectors; the last ``twins`` repeat the first ones."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, dim))
    vectors = centres[rng.integers(0, 3, slices)] + rng.normal(scale=0.4, size=(slices, dim))
    if twins:
        vectors[-twins:] = vectors[:twins]
    known = np.zeros(slices, dtype=np.bool_)
    known[rng.permutation(slices)[:labelled]] = True
    owners = [f"p{number}" for number in rng.integers(0, patients, slices)]
    return SlicePool(unit_vectors(vectors)[0], [f"s{row:03d}" for row in range(slices)], owners, known)


def wanted(n: int, **changes: object) -> SelectionSettings:
    return SelectionSettings.model_validate({"n": n, "random_draws": 2, **changes})


def distances(pool: SlicePool) -> np.ndarray:
    wide = pool.vectors.astype(np.float64)
    return np.linalg.norm(wide[:, None] - wide[None], axis=2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 3), labelled=st.integers(0, 2))
def test_the_k_center_radius_is_at_most_twice_the_best(seed: int, n: int, labelled: int) -> None:
    pool = pool_of(seed, 11, labelled=labelled)
    free, apart = np.flatnonzero(~pool.labelled), distances(pool)
    known = np.flatnonzero(pool.labelled).tolist()
    best = min(apart[:, [*known, *chosen]].min(axis=1).max() for chosen in combinations(free.tolist(), n))
    found = choose_core_set(pool, wanted(n, objective="radius", spread=False), seed)
    assert found.curve[-1].maximum <= 2 * best + 1e-6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 3), labelled=st.integers(0, 2))
def test_facility_location_takes_off_the_mean_what_it_promises(seed: int, n: int, labelled: int) -> None:
    pool = pool_of(seed, 11, labelled=labelled)
    free, apart = np.flatnonzero(~pool.labelled), distances(pool)[~pool.labelled]
    start = np.minimum(apart[:, pool.labelled].min(axis=1, initial=2.0), 2.0)

    def gain(chosen: list[int]) -> float:
        return float(np.sum(start - np.minimum(start, apart[:, chosen].min(axis=1))))

    best = max(gain(list(chosen)) for chosen in combinations(free.tolist(), n))
    found = choose_core_set(pool, wanted(n, spread=False), seed)
    assert gain(found.rows.tolist()) >= (1 - 1 / np.e) * best - 1e-3
    if n == 1:
        assert gain(found.rows.tolist()) >= best - 1e-3


def test_lazy_gains_change_no_choice() -> None:
    pool = pool_of(5, 60, labelled=3, twins=10)
    apart = np.rint(distances(pool) * 2**14)[~pool.labelled]
    nearest, plain = apart[:, pool.labelled].min(axis=1), []
    for _ in range(12):
        gains = np.maximum(nearest[:, None] - apart, 0).sum(axis=0)
        gains[[*plain, *np.flatnonzero(pool.labelled)]] = -1
        plain.append(int(gains.argmax()))
        nearest = np.minimum(nearest, apart[:, plain[-1]])
    assert choose_core_set(pool, wanted(12, spread=False)).rows.tolist() == plain


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), labelled=st.integers(0, 5), n=st.integers(1, 12))
def test_a_choice_is_new_distinct_and_coverage_never_falls(objective: str, seed: int, labelled: int, n: int) -> None:
    pool = pool_of(seed, 20, labelled=labelled, twins=3)
    found = choose_core_set(pool, wanted(n, objective=objective), seed)
    assert len(set(found.rows.tolist())) == n
    assert not pool.labelled[found.rows].any()
    for curve in (found.curve, found.random_curve):
        assert [point.chosen for point in curve] == curve_counts(n, labelled > 0)
        for before, after in pairwise(curve):
            assert after.mean <= before.mean + 1e-12
            assert after.p95 <= before.p95 + 1e-12
            assert after.maximum <= before.maximum
    assert np.isinf(found.distances[0]) == (labelled == 0)
    assert np.isfinite(found.distances[1:]).all()
    assert found.covers.sum() <= 20 - labelled
    if not labelled:
        assert found.covers.sum() == 20


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 40))
def test_neither_rows_nor_blocks_matter(objective: str, seed: int, block: int) -> None:
    pool = pool_of(seed, 30, labelled=4, twins=6)
    chosen = wanted(9, objective=objective)
    reference = choose_core_set(pool, chosen, seed)
    order = np.random.default_rng(seed).permutation(len(pool))
    shuffled = SlicePool(
        pool.vectors[order],
        [pool.ids[row] for row in order],
        [pool.patients[row] for row in order],
        pool.labelled[order],
    )
    found = choose_core_set(shuffled, chosen, seed, block_rows=block)
    assert order[found.rows].tolist() == reference.rows.tolist()
    assert found.distances.tolist() == reference.distances.tolist()
    assert found.covers.tolist() == reference.covers.tolist()
    for point, expected in zip(found.curve, reference.curve, strict=True):
        assert (point.chosen, point.maximum) == (expected.chosen, expected.maximum)
        assert point.mean == pytest.approx(expected.mean, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 50), n=st.integers(1, 20))
def test_the_nearest_chosen_row_is_that_of_scikit_learn(seed: int, block: int, n: int) -> None:
    pool = pool_of(seed, 40, dim=17)
    rows = np.random.default_rng(seed).permutation(40)[:n]
    nearest = NearestChosen(pool.vectors, block)
    nearest.add(rows[: n // 2])
    nearest.add(rows[n // 2 :])
    where, apart = pairwise_distances_argmin_min(pool.vectors.astype(np.float64), pool.vectors[rows].astype(np.float64))
    assert nearest.owner.tolist() == rows[where].tolist()
    assert np.sqrt(nearest.squared) == pytest.approx(apart, abs=1e-7)


def test_equal_distances_belong_to_what_was_chosen_first() -> None:
    pool = pool_of(1, 12, twins=4)
    for rows in ([0, 8], [8, 0]):
        together, apart = NearestChosen(pool.vectors, 5), NearestChosen(pool.vectors)
        together.add(rows)
        for row in rows:
            apart.add(row)
        assert set(together.owner.tolist()) == {rows[0]} == set(apart.owner.tolist())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_labelled_slices_count_as_chosen(objective: str) -> None:
    # Two far groups; all of one is labelled.
    rng = np.random.default_rng(0)
    one, other = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    vectors, _ = unit_vectors(np.concatenate([one + rng.normal(scale=0.05, size=(8, 3)) for _ in "a"] + [other[None]]))
    known = np.zeros(9, dtype=np.bool_)
    known[:3] = True
    pool = SlicePool(vectors, [f"s{row}" for row in range(9)], ["a"] * 9, known)
    found = choose_core_set(pool, wanted(1, objective=objective))
    assert found.rows.tolist() == [8]
    assert found.distances[0] > 1
    assert found.covers.tolist() == [1]
    assert (found.curve[0].chosen, found.curve[-1].chosen) == (0, 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [3, 8, 13])
def test_patients_take_turns(objective: str, n: int) -> None:
    pool = pool_of(3, 40, patients=5)
    given_of = np.unique([pool.patients[row] for row in choose_core_set(pool, wanted(n, objective=objective)).rows],
                         return_counts=True)[1]  # fmt: skip
    assert len(given_of) == min(n, 5)
    assert given_of.max() - given_of.min() <= 1 or n < 5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_patient_gives_more_than_allowed(objective: str) -> None:
    pool = pool_of(4, 40, patients=5)
    found = choose_core_set(pool, wanted(10, objective=objective, spread=False, per_patient=2))
    assert max(np.unique([pool.patients[row] for row in found.rows], return_counts=True)[1]) == 2
    with pytest.raises(SettingsError, match="only 10 of 40 slices can be chosen with at most 2 of one patient"):
        choose_core_set(pool, wanted(11, objective=objective, per_patient=2))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_all_slices_can_be_chosen_and_not_one_more(objective: str) -> None:
    pool = pool_of(6, 12, labelled=2, twins=3)
    found = choose_core_set(pool, wanted(10, objective=objective))
    assert sorted(found.rows.tolist()) == np.flatnonzero(~pool.labelled).tolist()
    assert found.curve[-1].maximum == 0
    with pytest.raises(SettingsError, match=r"n is 11, but only 10 of 12 .* \(2 have a label already\)"):
        choose_core_set(pool, wanted(11, objective=objective))


def test_a_sample_stands_for_many_slices() -> None:
    pool = pool_of(7, 300, patients=6)
    start = NearestChosen(pool.vectors)
    whole = facility_location(pool, start, wanted(6), seed=0)
    drawn = facility_location(pool, start, wanted(6), seed=0, sample=90)
    kept = set(draw_evenly(pool.ids, pool.patients, 90, 0).tolist())
    assert set(drawn.tolist()) <= kept
    everyone = np.ones(300, dtype=np.bool_)
    means = [grow(start, rows, [6], everyone).curve[0].mean for rows in (whole, drawn)]
    random = grow(start, draw_evenly(pool.ids, pool.patients, 6, 0), [6], everyone).curve[0].mean
    assert means[0] < random
    assert means[1] < random
    # The sample never makes what was possible impossible.
    assert len(facility_location(pool, start, wanted(120), seed=0, sample=10)) == 120


def test_the_choice_covers_better_than_random_where_groups_differ_in_size() -> None:
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(10, 16))
    sizes = [300, 100, 50, 20, 10, 5, 5, 5, 3, 2]
    vectors = np.concatenate(
        [c + rng.normal(scale=0.1, size=(size, 16)) for c, size in zip(centres, sizes, strict=True)]
    )
    total = sum(sizes)
    pool = SlicePool(
        unit_vectors(vectors)[0],
        [f"s{row:04d}" for row in range(total)],
        [f"p{row % 25}" for row in range(total)],
        np.zeros(total, dtype=np.bool_),
    )
    for objective, figure in (("mean", "mean"), ("radius", "maximum")):
        found = choose_core_set(pool, wanted(10, objective=objective))
        assert getattr(found.curve[-1], figure) < 0.8 * getattr(found.random_curve[-1], figure)


def test_seeds_choose_the_first_slice_of_a_radius_alone() -> None:
    pool = pool_of(8, 30)
    firsts = {int(choose_core_set(pool, wanted(2, objective="radius"), seed).rows[0]) for seed in range(8)}
    assert len(firsts) > 2
    means = {tuple(choose_core_set(pool, wanted(4), seed).rows.tolist()) for seed in range(3)}
    assert len(means) == 1


def test_a_draw_is_even_and_a_prefix_of_a_longer_one() -> None:
    pool = pool_of(9, 50, patients=7)
    drawn = draw_evenly(pool.ids, pool.patients, 50, 3)
    assert sorted(drawn.tolist()) == list(range(50))
    assert drawn[:9].tolist() == draw_evenly(pool.ids, pool.patients, 9, 3).tolist()
    assert len({pool.patients[row] for row in drawn[:7]}) == 7
    blank = SupportSet(
        pool.ids, pool.patients, {1: "a"}, lambda i: np.zeros((2, 2)), lambda i: np.zeros((2, 2), np.uint8)
    )
    assert blank.draw(9, 3).tolist() == sorted(drawn[:9].tolist())


def test_a_pool_is_checked() -> None:
    with pytest.raises(InputError, match="2 ids"):
        SlicePool(np.ones((3, 2), np.float32), ["a", "b"], ["p"] * 3, np.zeros(3, np.bool_))
    with pytest.raises(InputError, match="at least one"):
        SlicePool(np.ones((0, 2), np.float32), [], [], np.zeros(0, np.bool_))

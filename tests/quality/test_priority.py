from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.errors import InputError
from rfss_core.quality import Candidate, rank_candidates
from rfss_core.quality import priority as module


def cloud(rng: np.random.Generator, centre: np.ndarray, slices: int = 3) -> np.ndarray:
    return (centre + 0.05 * rng.normal(size=(slices, centre.size))).astype(np.float32)


def cohort(seed: int = 0, groups: tuple[int, ...] = (6, 3, 1)) -> list[Candidate]:
    """Return cases in groups that look alike; the last group is an outlier with the poorest prediction."""
    rng = np.random.default_rng(seed)
    centres = np.eye(8)
    found = []
    for group, size in enumerate(groups):
        predicted = 0.1 if group == len(groups) - 1 else 0.6
        names = [f"{group}c{n}" for n in range(size)]
        found += [Candidate(f"g{name}", f"p{name}", cloud(rng, centres[group]), predicted) for name in names]
    return found


SUPPORT = np.eye(8)[6:7].repeat(4, axis=0)


def test_the_largest_group_comes_first_and_the_outlier_not_before_the_groups() -> None:
    ranked = rank_candidates(cohort(), SUPPORT, k=1)
    assert [one.rank for one in ranked] == list(range(1, 11))
    assert ranked[0].case.startswith("g0")
    # The second stands for the second group: the first serves its own already.
    assert ranked[1].case.startswith("g1")
    assert "g2c0" not in [one.case for one in ranked[:2]]
    gains = [one.gain for one in ranked]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0


@settings(max_examples=15)
@given(st.integers(0, 50), st.randoms())
def test_the_order_of_cases_and_a_common_factor_change_nothing(seed: int, random: object) -> None:
    cases = cohort(seed, (4, 3, 2))
    shuffled = list(cases)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    scaled = [Candidate(c.case, c.patient, 3 * c.vectors, c.predicted) for c in shuffled]
    expected = rank_candidates(cases, SUPPORT, k=2)
    assert rank_candidates(shuffled, SUPPORT, k=2) == expected
    assert [one.case for one in rank_candidates(scaled, 2 * SUPPORT, k=2)] == [one.case for one in expected]


def test_lazy_evaluation_finds_what_looking_at_everything_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cohort(3, (5, 4, 3))
    queue = module._Queue(sorted(cases, key=lambda case: case.case), SUPPORT, 2, 0, module.SAMPLE)
    left, names = list(range(len(cases))), sorted(case.case for case in cases)
    expected = []
    while left:
        best = max(left, key=lambda case: (queue._gain(case), -case))
        expected.append(names[best])
        left.remove(best)
        queue._serve(best)
    assert [one.case for one in rank_candidates(cases, SUPPORT, k=2)] == expected


def test_a_case_that_cannot_serve_gains_nothing_for_the_others() -> None:
    cases = cohort()
    held_out = [Candidate(c.case, c.patient, c.vectors, c.predicted, serves=c.case != "g0c0") for c in cases]
    ranked = {one.case: one for one in rank_candidates(held_out, SUPPORT, k=1)}
    assert ranked["g0c0"].gain == 0
    assert max(ranked.values(), key=lambda one: one.gain).case.startswith("g0")


def test_slices_of_the_same_patient_do_not_count() -> None:
    rng = np.random.default_rng(0)
    alike = [Candidate(f"c{n}", "same", cloud(rng, np.eye(8)[0]), 0.2) for n in range(3)]
    assert [one.gain for one in rank_candidates(alike, SUPPORT, k=1)] == [0, 0, 0]


def test_a_sample_is_enough_and_no_prediction_counts_as_poor() -> None:
    cases = [Candidate(c.case, c.patient, c.vectors, None) for c in cohort(0, (40, 5, 1))]
    ranked = rank_candidates(cases, SUPPORT, k=1, sample=60)
    assert ranked[0].case.startswith("g0")
    assert len(ranked) == 46
    assert rank_candidates([], SUPPORT, k=1) == []


@pytest.mark.parametrize("bad", [{"k": 0}, {"support": np.empty((0, 8))}, {"twice": True}])
def test_what_cannot_be_ranked_is_refused(bad: dict[str, object]) -> None:
    cases = cohort() * (2 if "twice" in bad else 1)
    with pytest.raises(InputError):
        rank_candidates(cases, bad.get("support", SUPPORT), bad.get("k", 1))  # type: ignore[arg-type]

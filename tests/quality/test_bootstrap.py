from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.errors import InputError
from rfss_core.quality import Interval, bootstrap_interval

rows = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdefgh")), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(rows, st.integers(0, 2**32 - 1))
def test_ends_contain_the_mean_of_patient_means(data: list[tuple[float, str]], seed: int) -> None:
    values, patients = [value for value, _ in data], [patient for _, patient in data]
    interval = bootstrap_interval(values, patients, 200, seed)
    means = [np.mean([v for v, p in data if p == patient]) for patient in set(patients)]
    assert interval.mean is not None
    assert interval.ci_low is not None
    assert interval.ci_high is not None
    assert interval.mean == pytest.approx(np.mean(means))
    assert 0 <= interval.ci_low <= interval.mean <= interval.ci_high <= 1
    assert interval.n == len(means)
    assert interval == bootstrap_interval(values[::-1], patients[::-1], 200, seed)


def test_repeating_a_patients_cases_changes_nothing() -> None:
    values, patients = [0.5, 0.7, 0.9, 0.8], ["a", "b", "c", "d"]
    once = bootstrap_interval(values, patients, 500, 1)
    assert bootstrap_interval(values * 20, patients * 20, 500, 1) == once


def test_intervals_cover_the_true_mean() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        # Skewed, as Dice is: mean of Beta(8, 2) is 0.8. Cases of a patient are strongly correlated.
        values = np.repeat(rng.beta(8, 2, 20), 3) + rng.normal(0, 0.001, 60)
        interval = bootstrap_interval(values.tolist(), [f"p{i // 3}" for i in range(60)], 500, trial)
        assert interval.ci_low is not None
        assert interval.ci_high is not None
        hits += interval.ci_low <= 0.8 <= interval.ci_high
    # 95 % nominal; bootstrap intervals of 20 patients are a little too narrow.
    assert 0.88 <= hits / 200 <= 0.99


def test_few_patients_are_not_overrated() -> None:
    assert bootstrap_interval([], [], 100, 0) == Interval(None, None, None, 0)
    assert bootstrap_interval([0.9, 0.7], ["a", "a"], 100, 0) == Interval(0.8, 0.0, 1.0, 1)
    assert bootstrap_interval([7.0], ["a"], 100, 0, (0, math.inf)) == Interval(7.0, 0.0, None, 1)
    assert bootstrap_interval([0.9] * 3, ["a", "b", "c"], 100, 0) == Interval(0.9, 0.9, 0.9, 3)


def test_bad_values_are_named() -> None:
    with pytest.raises(InputError, match="'b' is nan"):
        bootstrap_interval([0.5, float("nan")], ["a", "b"], 100, 0)
    with pytest.raises(InputError, match="2 values but 1 patients"):
        bootstrap_interval([0.5, 0.6], ["a"], 100, 0)

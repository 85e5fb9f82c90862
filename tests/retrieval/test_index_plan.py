"""Kinds and lists by size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import SettingsError
from rfss_core.retrieval.index_plan import HELD_SHARE, LEAST_TRAIN_POINTS, plan_index
from rfss_core.retrieval.tuning import hold_out
from rfss_core.settings import IndexSettings


@pytest.mark.parametrize(
    ("rows", "kind", "nlist"),
    [
        (1, "flat", 0),
        (9_999, "flat", 0),
        (10_000, "ivf-flat", 230),
        (250_000, "ivf-flat", 2_000),
        (1_000_000, "ivf-flat", 4_000),
        (1_000_001, "ivf-sq8", 16_384),
        (10_000_001, "ivf-sq8", 65_536),
        (1_000_000_000, "ivf-sq8", 262_144),
    ],
)
def test_auto(rows: int, kind: str, nlist: int) -> None:
    plan = plan_index(rows, IndexSettings())
    assert (plan.kind, plan.nlist) == (kind, nlist)


@given(st.integers(50, 2**31), st.sampled_from(["ivf-flat", "ivf-sq8"]))
def test_every_list_has_enough_to_train_on(rows: int, kind: str) -> None:
    plan = plan_index(rows, IndexSettings.model_validate({"kind": kind}))
    assert plan.nlist >= 1
    assert min(plan.train_rows, rows - int(HELD_SHARE * rows)) >= LEAST_TRAIN_POINTS * plan.nlist


def test_too_few_vectors_are_refused() -> None:
    for values in ({"kind": "ivf-flat"}, {"kind": "ivf-pq"}, {"kind": "ivf-sq8", "nlist": 9}):
        with pytest.raises(SettingsError, match=r"too few|at most"):
            plan_index(40 if "nlist" not in values else 300, IndexSettings.model_validate(values))


@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=300),
    queries=st.integers(1, 80),
    seed=st.integers(0, 2**31 - 1),
)
def test_groups_are_held_out_as_a_whole(groups: list[int], queries: int, seed: int) -> None:
    numbers = np.array(groups)
    held = hold_out(numbers, queries, seed)
    assert (np.diff(held[:, 0]) > 0).all()
    assert held[:, 1].any()
    inside = np.isin(numbers, numbers[held[:, 0]])
    assert np.array_equal(np.flatnonzero(inside), held[:, 0])
    assert np.array_equal(held, hold_out(numbers, queries, seed))

"""Chunk plan: a partition into whole cases that a new case barely disturbs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.store.chunks import CAP, Chunk, _draw, plan_chunks

TARGET = 32


def table(cases: dict[str, int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case_id": list(cases),
            "n_slices": list(cases.values()),
            "source_digest": [f"source of {case}" for case in cases],
            "pixel_digest": [f"pixels of {case}" for case in cases],
        }
    )


COHORTS = st.dictionaries(
    st.text("abcdefgh0123456789", min_size=1, max_size=6), st.integers(1, TARGET * 6), max_size=60
)
NAMES = st.text("abcdefgh0123456789", min_size=1, max_size=6)


@given(COHORTS, st.randoms())
def test_every_case_is_in_exactly_one_chunk_in_any_order(cases: dict[str, int], random) -> None:
    plan = plan_chunks(table(cases), TARGET)
    assert [case for chunk in plan for case in chunk.case_ids] == sorted(cases)
    assert len({chunk.id for chunk in plan}) == len(plan)
    for chunk in plan:
        assert chunk.n_slices == sum(cases[case] for case in chunk.case_ids)
        assert chunk.n_slices <= CAP * TARGET or len(chunk.case_ids) == 1
        assert len(chunk.id) == 16
    shuffled = list(cases.items())
    random.shuffle(shuffled)
    assert plan_chunks(table(dict(shuffled)), TARGET) == plan


@given(COHORTS, NAMES, st.integers(1, TARGET * 6))
def test_one_case_more_changes_only_its_run(cases: dict[str, int], name: str, n_slices: int) -> None:
    """A new case grows one chunk or splits it; where the cap cuts a run, that run may be cut anew, but no other."""
    cases.pop(name, None)
    before = set(plan_chunks(table(cases), TARGET))
    after = set(plan_chunks(table(cases | {name: n_slices}), TARGET))
    lost, made = before - after, after - before

    def ends_run(case: str) -> bool:
        return _draw(case) < cases[case] / TARGET

    runs = [[]]
    for case in sorted(cases):
        runs[-1].append(case)
        if ends_run(case):
            runs.append([])
    run = next((run for run in runs if run and run[-1] > name), runs[-1])
    assert {case for chunk in made for case in chunk.case_ids} <= {*run, name}
    assert {case for chunk in lost for case in chunk.case_ids} <= set(run)
    assert any(name in chunk.case_ids for chunk in made)
    if sum(cases[case] for case in run) + n_slices <= CAP * TARGET:
        assert len(lost) <= 1
        assert len(made) <= 2


def test_a_large_cohort_keeps_its_plan_and_its_mean() -> None:
    draw = np.random.default_rng(0)
    cases = {f"patient{n:05d}": int(size) for n, size in enumerate(draw.integers(8, 40, 4000))}
    plan = plan_chunks(table(cases))
    sizes = np.array([chunk.n_slices for chunk in plan])
    assert 40 < sizes.mean() < 70
    assert sizes.max() <= CAP * 64
    more = plan_chunks(table(cases | {"patient02000b": 20, "new": 11}))
    kept = {chunk.id for chunk in plan} & {chunk.id for chunk in more}
    assert len(plan) - len(kept) <= 4


def test_cuts_by_the_cap_are_content_defined_too() -> None:
    """400 cases that end no run are cut by the cap alone: one case less must not move all the cuts behind it."""
    names = [name for name in (f"c{n:04d}" for n in range(1500)) if _draw(name) > 0.5][:400]
    plan = set(plan_chunks(table(dict.fromkeys(names, 1)), 8))
    assert len(plan) > 15
    changed = [
        len(plan ^ set(plan_chunks(table(dict.fromkeys(set(names) - {names[gone]}, 1)), 8)))
        for gone in range(0, 400, 7)
    ]
    assert np.mean(changed) < 3
    assert max(changed) < 12


def test_changed_content_changes_the_id_of_its_chunk_alone() -> None:
    cases = table({f"c{n:03d}": 10 for n in range(100)})
    before = plan_chunks(cases, TARGET)
    for column in ("source_digest", "pixel_digest"):
        changed = cases.copy()
        changed.loc[50, column] = "other"
        after = plan_chunks(changed, TARGET)
        assert [chunk.case_ids for chunk in after] == [chunk.case_ids for chunk in before]
        assert {chunk.case_ids for chunk, old in zip(after, before, strict=True) if chunk.id != old.id} == {
            next(chunk.case_ids for chunk in before if "c050" in chunk.case_ids)
        }


def test_the_plan_is_the_same_everywhere() -> None:
    """Ids are stored: a change here orphans every workspace."""
    assert plan_chunks(table({"b": 3, "a": 2}), TARGET) == [Chunk("5c6a4b376c948b40", ("a", "b"), 5)]


def test_bad_arguments_are_refused() -> None:
    assert plan_chunks(table({})) == []
    with pytest.raises(ValueError, match="target_slices"):
        plan_chunks(table({"a": 1}), 0)
    twice = pd.concat([table({"a": 1}), table({"a": 2})])
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        plan_chunks(twice)

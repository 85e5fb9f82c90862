"""Splits for studies: who is tested, who serves, and leaks that are planted on purpose."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import InputError, LeakError, SettingsError
from rfss_core.quality import Split, SplitCase, choose_patients, refuse_leak

names = st.lists(st.text(min_size=1, max_size=6), min_size=4, max_size=40, unique=True)
seeds = st.integers(0, 2**32 - 1)


@given(names, seeds, st.data())
def test_nobody_is_on_both_sides_and_the_numbers_are_as_asked(
    patients: list[str], seed: int, data: st.DataObject
) -> None:
    test = data.draw(st.integers(1, len(patients) - 1))
    support = data.draw(st.integers(1, len(patients) - test))
    split = choose_patients(patients, 0.3, seed, test, support)
    assert not split.support & split.held_out
    assert (len(split.held_out), len(split.support)) == (test, support)
    assert split.support | split.held_out <= set(patients)


@given(names, seeds, st.data())
def test_test_patients_do_not_depend_on_the_support(patients: list[str], seed: int, data: st.DataObject) -> None:
    test = data.draw(st.integers(1, len(patients) - 1))
    sizes = [*range(1, len(patients) - test + 1), None]
    splits = [choose_patients(patients, 0.3, seed, test, size) for size in sizes]
    assert len({split.held_out for split in splits}) == 1
    assert all(small.support <= large.support for small, large in itertools.pairwise(splits))


def test_more_patients_than_there_are_is_said() -> None:
    with pytest.raises(SettingsError, match="3 test and 3 support patients need 6 labelled patients, but 5 were found"):
        choose_patients(["a", "b", "c", "d", "e"], 0.3, 0, 3, 3)
    with pytest.raises(InputError):
        choose_patients(["a", "a"], 0.3, 0)


def test_a_split_with_a_patient_on_both_sides_cannot_be_made() -> None:
    with pytest.raises(LeakError, match="patient 'b' is on both sides"):
        Split(support=frozenset("ab"), held_out=frozenset("bc"))


def test_planted_leaks_are_caught() -> None:
    support = [SplitCase("a_1", "a", "111"), SplitCase("b_1", "b", "222")]
    refuse_leak(support, [SplitCase("c_1", "c", "333")])
    with pytest.raises(LeakError, match=r"patient 'b' is in the support set \(b_1\) and tested \(b_2\)"):
        refuse_leak(support, [SplitCase("c_1", "c", "333"), SplitCase("b_2", "b", "444")])
    with pytest.raises(
        LeakError, match=r"'c_1' \(patient c\), a test case, has the very pixels of 'a_1' \(patient a\)"
    ):
        refuse_leak(support, [SplitCase("c_1", "c", "111")])
    with pytest.raises(LeakError, match=r"'c_1'.*; 1 more test cases have copies there"):
        refuse_leak(support, [SplitCase("c_1", "c", "111"), SplitCase("d_1", "d", "222"), SplitCase("e_1", "e", "5")])

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import InputError, SettingsError
from rfss_core.quality import split_patients, with_reviewed

patients = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60).filter(lambda names: len(set(names)) > 1)
shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32 - 1)


@given(patients, shares, seeds)
def test_both_sides_have_patients_and_share_none(names: list[str], share: float, seed: int) -> None:
    split = split_patients(names, share, seed)
    assert split.support
    assert split.held_out
    assert not split.support & split.held_out
    assert split.support | split.held_out == set(names)
    assert abs(len(split.held_out) - share * len(set(names))) <= 1


@given(patients, shares, seeds, st.randoms())
def test_order_and_repetition_do_not_matter(names: list[str], share: float, seed: int, random: object) -> None:
    shuffled = [*names, names[0]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_patients(shuffled, share, seed) == split_patients(names, share, seed)


@given(patients, shares, seeds, st.text(min_size=9, max_size=9))
def test_a_new_patient_moves_at_most_one_other(names: list[str], share: float, seed: int, new: str) -> None:
    before = split_patients(names, share, seed)
    after = split_patients([*names, new], share, seed)
    assert len(before.support & after.held_out) + len(before.held_out & after.support) <= 1


def test_seeds_differ() -> None:
    names = [f"patient{number:03}" for number in range(40)]
    assert len({split_patients(names, 0.3, seed).held_out for seed in range(5)}) == 5


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a", "a"]])
def test_too_few_patients_are_named(names: list[str]) -> None:
    with pytest.raises(InputError, match=rf"{len(names)} labelled cases come from {len(set(names))} patients"):
        split_patients(names, 0.3, 0)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_out_of_bounds_is_named(share: float) -> None:
    with pytest.raises(SettingsError, match=str(share)):
        split_patients(["a", "b"], share, 0)


@given(patients, shares, seeds, st.lists(st.text(max_size=8)))
def test_reviewed_patients_serve_and_are_never_held_out(
    names: list[str], share: float, seed: int, reviewed: list[str]
) -> None:
    before = split_patients(names, share, seed)
    after = with_reviewed(before, [*reviewed, names[0]])
    assert after.held_out == before.held_out
    assert before.support <= after.support
    assert not after.support & after.held_out
    assert after.support - before.support == set(reviewed) - set(names)

"""Splits of labelled patients: the only place where splits are made (invariant 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rfss_core.digest import digest_bytes
from rfss_core.errors import InputError, LeakError, SettingsError


@dataclass(frozen=True)
class Split:
    """Labelled patients in two disjoint, non-empty sets."""

    support: frozenset[str]
    """Patients whose labelled slices may be retrieved."""
    held_out: frozenset[str]
    """Patients on whom quality is measured; never in the support set of a measurement."""

    def __post_init__(self) -> None:
        """Refuse a patient on both sides.

        Raises:
            LeakError: there is one.
        """
        if both := sorted(self.support & self.held_out):
            raise LeakError(
                f"patient '{both[0]}' is on both sides of a split ({len(both)} patients are); make splits with "
                "split_patients or choose_patients"
            )


def split_patients(patients: Sequence[str], held_out: float, seed: int) -> Split:
    """Split labelled patients into a support and a held-out set.

    Patients are ranked by a seeded hash of their own name and the first ones are held out. So the split depends
    neither on the order of ``patients`` nor on repetitions in it, and a patient added later moves at most one other
    patient across: measurements before and after a review round stay comparable.

    Args:
        patients: patient of each labelled case; repetitions are welcome.
        held_out: share of the patients to hold out, between 0 and 1, both excluded.
        seed: seed of the ranking.

    Returns:
        The split; ``round(held_out * n)`` patients are held out, at least 1 and at most ``n - 1``.

    Raises:
        SettingsError: ``held_out`` does not lie between 0 and 1.
        InputError: there are fewer than 2 labelled patients.
    """
    if not 0 < held_out < 1:
        raise SettingsError(f"held_out must lie between 0 and 1, both excluded, got {held_out}")
    unique = set(patients)
    if len(unique) < 2:
        raise InputError(
            f"{len(patients)} labelled cases come from {len(unique)} patients, but a support set and held-out cases "
            "need at least 2; label a case of another patient, or set imaging.patient_pattern if patients are confused"
        )
    ranked = sorted(unique, key=lambda patient: (digest_bytes(f"{seed}\0{patient}".encode()), patient))
    count = min(max(round(held_out * len(ranked)), 1), len(ranked) - 1)
    return Split(support=frozenset(ranked[count:]), held_out=frozenset(ranked[:count]))


def choose_patients(
    patients: Sequence[str],
    held_out: float,
    seed: int,
    test_patients: int | None = None,
    support_patients: int | None = None,
) -> Split:
    """Choose test patients and, among the others, those that the support set comes from.

    The test patients depend on the labelled patients, their number and the seed alone: methods and support sets of any
    size are measured on the same ones. Of one seed a smaller support set's patients are among a larger one's.

    Args:
        patients: patient of each labelled case; repetitions are welcome.
        held_out: share of the patients to measure on where ``test_patients`` is None.
        seed: seed of both choices.
        test_patients: patients to measure on.
        support_patients: patients of the support set. Default: all others.

    Returns:
        The split; with ``support_patients`` some patients are on neither side.

    Raises:
        SettingsError: more patients were asked for than are labelled.
        InputError: there are fewer than 2 labelled patients.
    """
    known = len(set(patients))
    wanted = (test_patients or 1) + (support_patients or 1)
    if wanted > known:
        raise SettingsError(
            f"{test_patients or 1} test and {support_patients or 1} support patients need {wanted} labelled patients, "
            f"but {known} were found; ask for fewer, or check --patient-pattern"
        )
    share = held_out if test_patients is None else test_patients / known
    split = split_patients(patients, share, seed)
    if support_patients is None or support_patients >= len(split.support):
        return split
    others = sorted(split.support)
    drawn = split_patients(others, support_patients / len(others), seed)
    return Split(support=drawn.held_out, held_out=split.held_out)


def with_reviewed(split: Split, patients: Sequence[str]) -> Split:
    """Let reviewed patients join the support set of a split that was made without them.

    Cases are reviewed because their pseudo-labels were thought poor or because many others look like them: they are
    no random sample, and measuring on them would say little about the others. So the held-out patients stay those who
    were drawn among the patients that experts had labelled. A reviewed case of a held-out patient joins neither side:
    in the support set it would leak into the measurement.

    Args:
        split: of the patients with labels of experts.
        patients: patient of each reviewed case.

    Returns:
        The split with a larger support set.
    """
    return Split(support=split.support | (set(patients) - split.held_out), held_out=split.held_out)

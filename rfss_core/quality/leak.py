"""Search for leaks: test patients, or copies of their images, among those that serve or train."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pandas as pd

from rfss_core.errors import LeakError


@dataclass(frozen=True)
class SplitCase:
    """What the search looks at of one case."""

    name: str
    patient: str
    pixels: str
    """Digest of the image's pixels."""


def split_cases(cases: pd.DataFrame, ids: Collection[str] | None = None) -> list[SplitCase]:
    """Return rows of a manifest's table of cases as the search looks at them: those with these ids, or all."""
    if ids is not None:
        cases = cases[cases["case_id"].isin(list(ids))]
    columns = zip(cases["name"], cases["patient"], cases["pixel_digest"], strict=True)
    return [SplitCase(str(name), str(patient), str(pixels)) for name, patient, pixels in columns]


def refuse_leak(support: Iterable[SplitCase], test: Iterable[SplitCase]) -> None:
    """Refuse a support set that knows a test case.

    A copy of a scan under another patient's name is a leak that no split by names can see, and public sets have some.

    Args:
        support: cases that serve or train.
        test: cases to measure on.

    Raises:
        LeakError: a patient is on both sides, or an image is, under whatever name; the message names the first such
            pair and counts the others.
    """
    patients: dict[str, SplitCase] = {}
    images: dict[str, SplitCase] = {}
    for case in support:
        patients.setdefault(case.patient, case)
        images.setdefault(case.pixels, case)
    copies = []
    for case in test:
        if (same := patients.get(case.patient)) is not None:
            raise LeakError(
                f"patient '{case.patient}' is in the support set ({same.name}) and tested ({case.name}); "
                "check --patient-pattern"
            )
        if (copy := images.get(case.pixels)) is not None:
            copies.append((case, copy))
    if copies:
        case, copy = copies[0]
        more = "" if len(copies) == 1 else f"; {len(copies) - 1} more test cases have copies there"
        raise LeakError(
            f"'{case.name}' (patient {case.patient}), a test case, has the very pixels of '{copy.name}' (patient "
            f"{copy.patient}) in the support set; remove one of them, or give both one patient's name{more}"
        )

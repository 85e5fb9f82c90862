"""What can be wrong with a study before any model has run: patients, classes, slices, leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from rfss_core.digest import digest_json
from rfss_core.errors import InputError, SettingsError
from rfss_core.quality import Split, choose_patients, refuse_leak, split_cases
from rfss_core.retrieval.draw import draw_evenly
from rfss_core.store import Manifest
from rfss_core.study.plan import Plan, PlannedRow


@dataclass(frozen=True)
class RowSize:
    """How much one row holds."""

    support_slices: int
    support_patients: int
    test_cases: int
    test_slices: int
    test_pixels: int
    """Rows times columns of a typical test slice."""
    classes: int


@dataclass(frozen=True)
class Checked:
    """A plan that can be carried out on the data."""

    data: tuple[str, ...]
    """One a row: digest of the labelled images and label maps, and of the support slices that were drawn."""
    sizes: tuple[RowSize, ...]
    """One a row."""
    notes: tuple[str, ...]
    """What is not as the study asks, and does not stop it."""

    def fingerprints(self, plan: Plan) -> list[str]:
        """Return each row's fingerprint."""
        return [row.fingerprint(data) for row, data in zip(plan.rows, self.data, strict=True)]


def split_of(row: PlannedRow, patients: Sequence[str]) -> Split:
    """Return the patients of one row, chosen as ``rfss evaluate`` does.

    Args:
        row: the row.
        patients: patient of each labelled case.
    """
    return choose_patients(patients, row.settings.held_out, row.seed, row.test_patients, row.support_patients)


def labelled_slices(manifest: Manifest) -> pd.DataFrame:
    """Return the slices of the labelled cases with their patients, sorted by case and place."""
    cases = manifest.cases[manifest.cases["labelled"]]
    slices = manifest.slices.merge(cases[["case_id", "patient"]], on="case_id").sort_values(["case_id", "z"])
    return slices.reset_index(drop=True)


def support_slices(row: PlannedRow, slices: pd.DataFrame, split: Split) -> pd.DataFrame:
    """Return the slices that serve or train a row, drawn as stage index draws them.

    Args:
        row: the row.
        slices: see :func:`labelled_slices`.
        split: the row's patients.
    """
    support = slices[slices["patient"].isin(split.support)]
    if (limit := row.settings.retrieval.support_slices) is None:
        return support
    return support.iloc[draw_evenly(support["slice_id"].tolist(), support["patient"].tolist(), limit, row.seed)]


def check_patients(plan: Plan, patients: Sequence[str]) -> None:
    """Refuse a study that needs more patients than there are.

    Args:
        plan: the study.
        patients: patient of each labelled case.

    Raises:
        SettingsError: a row needs more; it is named.
        InputError: fewer than 2 patients.
    """
    for row in plan.rows:
        try:
            split_of(row, patients)
        except SettingsError as error:
            raise SettingsError(f"study '{plan.study.name}', row '{row.label}': {error}") from error


def check_plan(plan: Plan, manifest: Manifest) -> Checked:
    """Look at every split of a study before hours are spent.

    Args:
        plan: the study.
        manifest: the usable labelled cases.

    Returns:
        What was found.

    Raises:
        SettingsError: too few patients, or k above the number of support slices that a row has.
        InputError: a class that a split's test patients or support slices do not show.
        LeakError: a test case's pixels are in the support set under another patient's name.
    """
    cases = manifest.cases[manifest.cases["labelled"]]
    patients = cases["patient"].tolist()
    check_patients(plan, patients)
    values = sorted({int(value) for present in cases["classes"] for value in present})
    names = plan.rows[0].settings.imaging.classes or {}
    classes = {value: names.get(value, str(value)) for value in values}
    slices = labelled_slices(manifest)
    sizes: list[RowSize] = []
    notes: dict[str, None] = {}
    content = cases[["case_id", "patient", "pixel_digest", "label_digest"]].sort_values("case_id")
    labelled = digest_json(content.to_dict(orient="list"))
    data = []
    for row in plan.rows:
        size, support, note = _row_size(plan, row, cases, slices, classes)
        sizes.append(size)
        data.append(digest_json([labelled, support]))
        if note:
            notes[note] = None
    return Checked(tuple(data), tuple(sizes), tuple(notes))


def _row_size(
    plan: Plan, row: PlannedRow, cases: pd.DataFrame, slices: pd.DataFrame, classes: dict[int, str]
) -> tuple[RowSize, list[str], str]:
    where = f"study '{plan.study.name}', row '{row.label}', seed {row.seed}"
    split = split_of(row, cases["patient"].tolist())
    support_cases = cases[cases["patient"].isin(split.support)]
    test_cases = cases[cases["patient"].isin(split.held_out)]
    refuse_leak(split_cases(support_cases), split_cases(test_cases))
    support = support_slices(row, slices, split)
    limit, note = row.settings.retrieval.support_slices, ""
    if limit is not None and len(support) < limit:
        note = f"seed {row.seed}: {len(split.support)} support patients have {len(support)} slices, fewer than {limit}"
    k = row.settings.k or 1
    if row.retrieves and k > len(support):
        raise SettingsError(
            f"{where}: k is {k}, but the support set has only {len(support)} slices; lower k, or let more serve"
        )
    for found, who, more in (
        (support, "support slices", "support_patients or support_slices"),
        (test_cases, "test patients", "test_patients"),
    ):
        shown = {int(value) for present in found["classes"] for value in present}
        if missing := [classes[value] for value in sorted(set(classes) - shown)]:
            raise InputError(
                f"{where}: no {who} show class {', '.join(missing)}, which other patients have; raise {more}, or take "
                "another seed"
            )
    size = RowSize(
        len(support),
        len(split.support),
        len(test_cases),
        int(test_cases["n_slices"].sum()),
        int((test_cases["height"] * test_cases["width"]).median()),
        len(classes),
    )
    return size, sorted(support["slice_id"]), note

"""M&Ms: multi-centre, multi-vendor cardiac cine MRI, as the challenge ships it."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import ClassVar

from rfss_core.datasets.layouts.frames import frame_count
from rfss_core.datasets.layouts.layout import (
    Frames,
    Layout,
    LayoutCase,
    Listing,
    Part,
    Plan,
    folder_of,
    identity,
    missing_masks,
)
from rfss_core.errors import CaseError, LayoutError

_FILE = re.compile(r"(?:^|.*/)([A-Za-z0-9]+)/\1_sa(_gt)?\.nii(?:\.gz)?")
_CODE, _PHASES = "External code", ("ED", "ES")
_COLUMNS = {"Vendor": "vendor", "Centre": "centre", "Pathology": "pathology"}


class Mnms(Layout):
    """``Training/Labeled/A0S9V9/`` with ``A0S9V9_sa.nii.gz`` and ``A0S9V9_sa_gt.nii.gz``, both 4-D, and one CSV table.

    The table's ``ED`` and ``ES`` are frames from 0; only these two are annotated, and the masks of the others are
    empty. Read as nnU-Net's ``dataset_conversion/Task114_heart_MNMs.py`` does (frames by the table's column
    ``External code``; 1 is the left ventricle, unlike ACDC). ``Unlabeled``, ``Validation`` and ``Testing`` may be
    beside. An unlabelled patient whose row names no frames gives its first one.
    """

    name = "mnms"
    title = "M&Ms, Multi-Centre, Multi-Vendor & Multi-Disease Cardiac Image Segmentation Challenge (2020)"
    classes: ClassVar[dict[int, str]] = {1: "LV", 2: "Myo", 3: "RV"}
    values: ClassVar[dict[int, int]] = identity(classes)
    patient_pattern = "sub-[A-Za-z0-9]+"
    modality = "MR"
    body_part = "HEART"
    citation = "Campello et al., IEEE Transactions on Medical Imaging 40(12):3543-3554, 2021"
    terms = "by registration with the challenge (University of Barcelona)"
    certain = (_FILE,)

    def plan(self, listing: Listing, frames: Frames, /) -> Plan:
        """See :class:`Layout`."""
        cines: dict[tuple[str, str], Path] = {}
        masks: dict[tuple[str, str], Path] = {}
        for name, path in listing.items():
            found = _FILE.fullmatch(name)
            if found is not None:
                (masks if found[2] else cines)[(folder_of(name), found[1])] = path
        if not cines:
            raise LayoutError("mnms: no file is named like A0S9V9/A0S9V9_sa.nii.gz")
        rows = _rows(listing)
        patients = [
            LayoutCase(
                code, code, Part(path), (Part(masks.pop((split, code))),) if (split, code) in masks else (), split
            )
            for (split, code), path in sorted(cines.items())
        ]
        problems = missing_masks(patients, [patient.split for patient in patients])
        problems |= {path.name: f"{path.name}: this mask has no image beside it" for path in masks.values()}
        cases: list[LayoutCase] = []
        for patient in patients:
            row = rows.get(patient.patient)
            if row is None:
                problems[patient.name] = f"{patient.name}: the table has no row with this {_CODE}"
                continue
            try:
                cases += _frames(patient, row, frames)
            except (CaseError, LayoutError) as error:
                problems[patient.name] = str(error)
        return Plan(cases, problems)


def _frames(patient: LayoutCase, row: dict[str, str], frames: Frames) -> list[LayoutCase]:
    count = frame_count(patient.image.path)
    phases = {}
    for phase in _PHASES:
        given = (row.get(phase) or "").strip()
        if given.lower() not in ("", "nan"):
            try:
                phases[int(float(given))] = phase
            except ValueError as error:
                raise LayoutError(f"{patient.name}: '{given}' in column {phase} is no frame") from error
    if patient.masks and not phases:
        raise LayoutError(f"{patient.name}: has a mask, but the table names no ED or ES frame")
    beyond = [number for number in phases if not 0 <= number < count]
    if beyond:
        raise LayoutError(f"{patient.name}: the table names frame {beyond[0]}, but the file has {count} frames")
    chosen = range(count) if frames == "all" else sorted(phases or {0})
    columns = {ours: (row.get(theirs) or "").strip() for theirs, ours in _COLUMNS.items()}
    return [
        LayoutCase(
            name=f"sub-{patient.name}_frame{number:02d}",
            patient=f"sub-{patient.name}",
            image=Part(patient.image.path, number),
            masks=tuple(Part(mask.path, number) for mask in patient.masks) if number in phases else (),
            split=patient.split,
            columns={"phase": phases.get(number, ""), **columns},
        )
        for number in chosen
    ]


def _rows(listing: Listing) -> dict[str, dict[str, str]]:
    for name, path in sorted(listing.items()):
        if not name.lower().endswith(".csv"):
            continue
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            reader = csv.DictReader(stream)
            if {_CODE, *_PHASES} <= set(reader.fieldnames or ()):
                return {row[_CODE].strip(): row for row in reader if row[_CODE]}
    raise LayoutError(
        f"mnms: no CSV table with the columns {_CODE}, {' and '.join(_PHASES)} is in the folder, so the annotated "
        "frames are not known; put the challenge's table (saved as CSV) into it"
    )

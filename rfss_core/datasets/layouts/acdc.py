"""ACDC: cardiac cine MRI, as the challenge ships it."""

from __future__ import annotations

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
from rfss_core.errors import LayoutError

_FILE = re.compile(r"(?:^|.*/)(patient\d{3})/\1_(?:frame(\d{2})(_gt)?|(4d))\.nii(?:\.gz)?")
_COLUMNS = {"group": "Group", "body_height_cm": "Height", "body_weight_kg": "Weight"}
_INFO = re.compile(r"(?:^|.*/)(patient\d{3})/Info\.cfg")


class Acdc(Layout):
    """``training/patient001/`` with ``patient001_frame01.nii.gz``, ``_frame01_gt.nii.gz``, ``_4d.nii.gz``.

    Frames are numbered from 1; ``Info.cfg`` beside them names the two annotated ones (``ED: 1``), pathology, height and
    weight. Read as nnU-Net's ``dataset_conversion/Dataset027_ACDC.py`` does (files by name, ``testing`` beside
    ``training``), which leaves ``Info.cfg`` and the cine series alone.
    """

    name = "acdc"
    title = "ACDC, Automated Cardiac Diagnosis Challenge (2017)"
    classes: ClassVar[dict[int, str]] = {1: "RV", 2: "Myo", 3: "LV"}
    values: ClassVar[dict[int, int]] = identity(classes)
    patient_pattern = r"patient\d+"
    modality = "MR"
    body_part = "HEART"
    citation = "Bernard et al., IEEE Transactions on Medical Imaging 37(11):2514-2525, 2018"
    terms = "CC BY-NC-SA 4.0"
    certain = (_FILE,)

    def plan(self, listing: Listing, frames: Frames, /) -> Plan:
        """See :class:`Layout`."""
        infos = {folder_of(name, 0): path for name, path in listing.items() if _INFO.fullmatch(name)}
        images: dict[tuple[str, str, int], Path] = {}
        masks: dict[tuple[str, str, int], Path] = {}
        cines: dict[tuple[str, str], Path] = {}
        for name, path in listing.items():
            found = _FILE.fullmatch(name)
            if found is None:
                continue
            place = (folder_of(name, 0), found[1])
            if found[4]:
                cines[place] = path
            else:
                (masks if found[3] else images)[(*place, int(found[2]))] = path
        if not images:
            raise LayoutError("acdc: no file is named like patient001/patient001_frame01.nii.gz")
        cases: list[LayoutCase] = []
        problems: dict[str, str] = {}
        for (folder, patient, number), path in sorted(images.items()):
            cases.append(_case(folder, patient, number, Part(path), masks.pop((folder, patient, number), None), infos))
        problems |= missing_masks(cases, [case.split for case in cases])
        problems |= {path.name: f"{path.name}: this mask has no image beside it" for path in masks.values()}
        if frames == "all":
            for folder, patient in sorted({key[:2] for key in images}):
                cine = cines.get((folder, patient))
                if cine is None:
                    problems[patient] = f"{patient}: has no {patient}_4d.nii.gz, whose frames were asked for"
                    continue
                cases.extend(
                    _case(folder, patient, index + 1, Part(cine, index), None, infos)
                    for index in range(frame_count(cine))
                    if (folder, patient, index + 1) not in images
                )
        return Plan(cases, problems)


def _case(folder: str, patient: str, number: int, image: Part, mask: Path | None, infos: dict[str, Path]) -> LayoutCase:
    info = _info(infos[folder]) if folder in infos else {}
    phase = next((phase for phase in ("ED", "ES") if info.get(phase) == str(number)), "")
    columns = {ours: info.get(theirs, "") for ours, theirs in _COLUMNS.items()} | {"phase": phase}
    split = folder.rpartition("/")[0]
    masks = () if mask is None else (Part(mask),)
    return LayoutCase(f"{patient}_frame{number:02d}", patient, image, masks, split, columns)


def _info(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}

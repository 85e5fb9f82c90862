"""FLARE22: abdominal CT with 13 organs, few labelled and many unlabelled, as the challenge ships it."""

from __future__ import annotations

import re
from typing import ClassVar

from rfss_core.datasets.layouts.layout import (
    WHOLE_NAME,
    Frames,
    Layout,
    LayoutCase,
    Listing,
    Part,
    Plan,
    folder_of,
    identity,
)
from rfss_core.errors import LayoutError

_IMAGE = re.compile(r"(?:^|.*/)([^/]+)_0000\.nii(?:\.gz)?")
_MASK = re.compile(r"(?:^|.*/)(?:labels|labelsTr)/([^/]+)\.nii(?:\.gz)?", re.IGNORECASE)
_LABELLED = re.compile(r"FLARE22_Tr_\d{4}")


class Flare22(Layout):
    """``FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz`` and ``labels/FLARE22_Tr_0001.nii.gz``.

    Every other ``*_0000.nii.gz`` (``FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz``, the validation set) is an
    image to label. Read as U-Mamba's ``data/README.md`` and nnU-Net converters of FLARE22's participants do; the
    organs' numbers are those of U-Mamba's ``Dataset701_AbdomenCT/dataset.json``.
    """

    name = "flare22"
    title = "FLARE22, Fast and Low-resource Semi-supervised Abdominal Organ Segmentation (2022)"
    classes: ClassVar[dict[int, str]] = {
        1: "liver",
        2: "right kidney",
        3: "spleen",
        4: "pancreas",
        5: "aorta",
        6: "inferior vena cava",
        7: "right adrenal gland",
        8: "left adrenal gland",
        9: "gallbladder",
        10: "esophagus",
        11: "stomach",
        12: "duodenum",
        13: "left kidney",
    }
    values: ClassVar[dict[int, int]] = identity(classes)
    patient_pattern = WHOLE_NAME
    window = (40.0, 400.0)
    modality = "CT"
    body_part = "ABDOMEN"
    citation = "Ma et al., The Lancet Digital Health 6(11):e815-e826, 2024"
    terms = "by registration with the challenge"

    def recognised(self, listing: Listing) -> int:
        """See :class:`Layout`."""
        return sum(_LABELLED.match(name.rpartition("/")[2]) is not None for name in listing)

    def plan(self, listing: Listing, _frames: Frames, /) -> Plan:
        """See :class:`Layout`."""
        masks = {found[1]: path for name, path in listing.items() if (found := _MASK.fullmatch(name))}
        cases, problems = [], {}
        for name, path in sorted(listing.items()):
            found = _IMAGE.fullmatch(name)
            if found is None:
                continue
            case, mask = found[1], masks.pop(found[1], None)
            if mask is None and _LABELLED.fullmatch(case):
                problems[case] = f"{path.name}: has no mask labels/{case}.nii.gz"
            cases.append(LayoutCase(case, case, Part(path), () if mask is None else (Part(mask),), folder_of(name)))
        if not cases:
            raise LayoutError("flare22: no file is named like images/FLARE22_Tr_0001_0000.nii.gz")
        problems |= {path.name: f"{path.name}: this label has no image {case}_0000" for case, path in masks.items()}
        return Plan(cases, problems)

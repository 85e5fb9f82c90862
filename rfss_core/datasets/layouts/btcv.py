"""BTCV: abdominal CT with 13 organs, as Synapse ships it."""

from __future__ import annotations

import re
from typing import ClassVar

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

_IMAGE = re.compile(r"(?:^|.*/)img/img(\d{4})\.nii(?:\.gz)?")
_MASK = re.compile(r"(?:^|.*/)label/label(\d{4})\.nii(?:\.gz)?")


class Btcv(Layout):
    """``Abdomen/RawData/Training/img/img0001.nii.gz`` and ``label/label0001.nii.gz``; ``Testing/img`` has no labels.

    Any folder of this path may be named. Read as nnU-Net's
    ``dataset_conversion/Task017_BeyondCranialVaultAbdominalOrganSegmentation.py`` does (pairs by number; its names of
    the 13 organs).
    """

    name = "btcv"
    title = "BTCV, Multi-Atlas Labeling Beyond the Cranial Vault, abdomen (2015)"
    classes: ClassVar[dict[int, str]] = {
        1: "spleen",
        2: "right kidney",
        3: "left kidney",
        4: "gallbladder",
        5: "esophagus",
        6: "liver",
        7: "stomach",
        8: "aorta",
        9: "inferior vena cava",
        10: "portal and splenic veins",
        11: "pancreas",
        12: "right adrenal gland",
        13: "left adrenal gland",
    }
    values: ClassVar[dict[int, int]] = identity(classes)
    patient_pattern = r"img\d+"
    window = (40.0, 400.0)
    modality = "CT"
    body_part = "ABDOMEN"
    citation = "Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault, Synapse syn3193805, 2015"
    terms = "by registration with Synapse (syn3193805)"
    certain = (_IMAGE, _MASK)

    def plan(self, listing: Listing, _frames: Frames, /) -> Plan:
        """See :class:`Layout`."""
        masks = {
            (folder_of(name), found[1]): path for name, path in listing.items() if (found := _MASK.fullmatch(name))
        }
        cases = []
        for name, path in sorted(listing.items()):
            found = _IMAGE.fullmatch(name)
            if found is not None:
                split, case = folder_of(name), f"img{found[1]}"
                mask = masks.pop((split, found[1]), None)
                cases.append(LayoutCase(case, case, Part(path), () if mask is None else (Part(mask),), split))
        if not cases:
            raise LayoutError("btcv: no file is named like img/img0001.nii.gz")
        problems = missing_masks(cases, [case.split for case in cases])
        problems |= {path.name: f"{path.name}: this label has no image of its number" for path in masks.values()}
        return Plan(cases, problems)

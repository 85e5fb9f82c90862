"""REFUGE: fundus photographs with optic disc and cup, as the challenge ships it."""

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
    missing_masks,
)
from rfss_core.errors import LayoutError

_MASK = re.compile(r"(?:^|.*/)(?:Disc_Cup_Masks?|masks?|gts?)/(?:[^/]+/)*([A-Za-z]\d{4})\.(?:bmp|png)", re.IGNORECASE)
_SHIPPED = re.compile(r"(?:^|.*/)Disc_Cup_Masks?/.*", re.IGNORECASE)
_IMAGE = re.compile(r"(?:^|.*/)([A-Za-z]\d{4})\.(?:jpe?g|png)", re.IGNORECASE)
_GLAUCOMA = {"g": "yes", "n": "no"}


class Refuge(Layout):
    """``Training400/Glaucoma/g0001.jpg`` and ``Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp``.

    The training set's masks lie in ``Glaucoma`` and ``Non-Glaucoma``, the others' (``V0001``, ``T0001``) may lie in
    ``G`` and ``N`` or in no folder; images and masks pair by name. Masks hold 0 cup, 128 rim of the disc, 255
    background. Read as MMSegmentation's ``tools/dataset_converters/refuge.py`` and bob.ip.binseg's ``data/refuge`` do.
    The disc of the literature is rim and cup together.
    """

    name = "refuge"
    title = "REFUGE, Retinal Fundus Glaucoma Challenge (2018)"
    classes: ClassVar[dict[int, str]] = {1: "rim", 2: "cup"}
    values: ClassVar[dict[int, int]] = {255: 0, 128: 1, 0: 2}
    patient_pattern = WHOLE_NAME
    modality = "OP"
    body_part = "EYE"
    citation = "Orlando et al., Medical Image Analysis 59:101570, 2020"
    terms = "by registration with the challenge"
    caution = "REFUGE's files name no patients: every photograph counts as a patient of its own"

    def recognised(self, listing: Listing) -> int:
        """See :class:`Layout`."""
        return sum((_MASK.fullmatch(name) and _SHIPPED.fullmatch(name)) is not None for name in listing)

    def plan(self, listing: Listing, _frames: Frames, /) -> Plan:
        """See :class:`Layout`."""
        masks = {found[1].lower(): path for name, path in listing.items() if (found := _MASK.fullmatch(name))}
        cases = []
        for name, path in sorted(listing.items()):
            found = _IMAGE.fullmatch(name)
            if found is None or _MASK.fullmatch(name):
                continue
            mask = masks.pop(found[1].lower(), None)
            columns = {"glaucoma": _GLAUCOMA.get(found[1][0], "")}
            case = LayoutCase(found[1], found[1], Part(path), () if mask is None else (Part(mask),), "", columns)
            cases.append(case)
        if not cases:
            raise LayoutError("refuge: no file is named like Training400/Glaucoma/g0001.jpg")
        problems = missing_masks(cases, [f"{case.name[0]}0000" for case in cases])
        problems |= {path.name: f"{path.name}: this mask has no photograph of its name" for path in masks.values()}
        return Plan(cases, problems)

"""BUSI: breast ultrasound with lesions, as its publisher ships it."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import ClassVar

from rfss_core.datasets.layouts.layout import WHOLE_NAME, Frames, Layout, LayoutCase, Listing, Part, Plan
from rfss_core.errors import LayoutError

_FILE = re.compile(r"(?:^|.*/)(benign|malignant|normal)/\1 ?\((\d+)\)(_mask(?:_\d+)*)?\.png", re.IGNORECASE)


class Busi(Layout):
    """``Dataset_BUSI_with_GT/benign/`` with ``benign (1).png``, ``benign (1)_mask.png`` and further ``_mask_1.png``.

    Several masks of one image are several lesions and become one label map, as in the data set's own description (Data
    in Brief 28:104863) and public loaders of it (``*_mask*.png`` merged by their maximum). ``normal`` images have empty
    masks, which are kept. The diagnosis is a column of ``metadata.csv``, not a class: a mask's pixels do not show it.
    """

    name = "busi"
    title = "BUSI, Breast Ultrasound Images (2020)"
    classes: ClassVar[dict[int, str]] = {1: "lesion"}
    values: ClassVar[dict[int, int]] = {0: 0, 1: 1, 255: 1}
    patient_pattern = WHOLE_NAME
    empty_masks = True
    modality = "US"
    body_part = "BREAST"
    citation = "Al-Dhabyani et al., Data in Brief 28:104863, 2020"
    terms = "see the publisher's page"
    certain = (_FILE,)
    caution = (
        "BUSI's files name no patients (780 images of 600 women): images of one woman may fall on both sides of a "
        "split, so held-out figures may flatter"
    )

    def plan(self, listing: Listing, _frames: Frames, /) -> Plan:
        """See :class:`Layout`."""
        images: dict[tuple[str, int], Part] = {}
        masks: dict[tuple[str, int], list[Part]] = defaultdict(list)
        for name, path in sorted(listing.items()):
            found = _FILE.fullmatch(name)
            if found is not None:
                key = (found[1].lower(), int(found[2]))
                if found[3]:
                    masks[key].append(Part(path))
                else:
                    images[key] = Part(path)
        if not images:
            raise LayoutError("busi: no file is named like benign/benign (1).png")
        cases, problems = [], {}
        for (diagnosis, number), image in sorted(images.items()):
            name = f"{diagnosis}-{number:04d}"
            own = tuple(masks.pop((diagnosis, number), ()))
            if not own:
                problems[name] = f"{image.path.name}: has no mask {image.path.stem}_mask.png"
            cases.append(LayoutCase(name, name, image, own, diagnosis, {"diagnosis": diagnosis}))
        for left in masks.values():
            problems |= {part.path.name: f"{part.path.name}: this mask has no image beside it" for part in left}
        return Plan(cases, problems)

"""MONAI: the Medical Segmentation Decathlon's folders and its datalist, ``dataset.json``.

``monai.data.load_decathlon_datalist`` reads the list, ``LoadImaged`` the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.exporter import CaseFiles, WrittenCase
from rfss_core.datasets.exporters.grids import as_nifti
from rfss_core.datasets.exporters.pictures import any_colour, read_pixels, write_channels_last
from rfss_core.imaging import write_label
from rfss_core.imaging.output import write_atomically
from rfss_core.settings import ExportSettings

_PARTS = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
_SECTIONS = {"train": "training", "test": "test"}


class DecathlonExporter:
    """Writes images, label maps with their own values, and a datalist."""

    def __init__(self, settings: ExportSettings) -> None:
        del settings
        self._colour = False

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return ``out``."""
        del content
        return out

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Decide whether images have one channel or three."""
        self._colour = any_colour(content)
        return {"channels": 3 if self._colour else 1}

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write image and label map; a TIFF of several pages becomes NIfTI, as MONAI reads no other volume of it."""
        grid = case.grid if case.grid.suffix == ".png" else as_nifti(case.grid)
        images, targets = _PARTS[case.part]
        image, label = f"{images}/{case.id}{grid.suffix}", f"{targets}/{case.id}{grid.suffix}"
        write_channels_last(read_pixels(case, colour=self._colour), grid, folder / image)
        write_label(case.read_labels(), grid, folder / label)
        return CaseFiles((image, label), {"image": image, "label": label})

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write ``dataset.json``; ``weight`` is the confidence, which no section of the Decathlon's own has."""
        sections: dict[str, list[dict[str, Any]]] = {"training": [], "test": []}
        for each in written:
            sections[_SECTIONS[each.case.part]].append(
                {
                    "image": f"./{each.detail['image']}",
                    "label": f"./{each.detail['label']}",
                    "case": each.case.id,
                    "patient": each.case.patient,
                    "label_source": each.case.label_source,
                    "weight": each.case.weight,
                }
            )
        modalities = sorted({each.case.modality for each in written})
        channels = ["R", "G", "B"] if self._colour else ["+".join(modalities)]
        document = {
            "name": content.name,
            "description": "Pseudo-labels of RFSS; rfss-export.json says where each label map comes from",
            "tensorImageSize": "3D" if any(each.case.stored.n_slices > 1 for each in written) else "2D",
            "modality": {str(number): name for number, name in enumerate(channels)},
            "labels": {"0": "background", **{str(value): name for value, name in sorted(content.classes.items())}},
            "numTraining": len(sections["training"]),
            "numTest": len(sections["test"]),
            **sections,
        }
        write_atomically(folder / "dataset.json", (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())

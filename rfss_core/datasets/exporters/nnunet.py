"""nnU-Net v2: ``DatasetNNN_Name`` with ``imagesTr``, ``labelsTr`` and ``dataset.json``.

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md; what it writes passes
``nnunetv2.experiment_planning.verify_dataset_integrity``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.exporter import CaseFiles, WrittenCase
from rfss_core.datasets.exporters.grids import three_dimensional
from rfss_core.datasets.exporters.label_map import LabelMap, slug
from rfss_core.datasets.exporters.pictures import any_colour, read_pixels
from rfss_core.errors import InputError
from rfss_core.imaging import SourceGrid, write_image, write_label
from rfss_core.imaging.output import write_atomically
from rfss_core.settings import ExportSettings

FIRST_ID = 501
"""nnU-Net's own data sets end at 500."""
_NAME = re.compile(r"Dataset(\d{3})_(.+)")
_RESERVED = ("background", "ignore")
_STRAIGHT = 1e-4
"""Direction cosines may stray from right angles by so much; ITK refuses more."""
_PARTS = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


class NnunetExporter:
    """Writes nnU-Net's raw data format.

    Args:
        settings: ``dataset_id`` is read.
    """

    def __init__(self, settings: ExportSettings) -> None:
        self._wanted = settings.dataset_id
        self._labels = LabelMap({}, {})
        self._colour = False
        self._reader: str | None = None

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return ``out/DatasetNNN_Name``, or ``out`` where it is named like that itself.

        Raises:
            InputError: another data set has the number that was asked for.
        """
        named = _NAME.fullmatch(out.name)
        if named:
            if self._wanted not in (None, int(named[1])):
                raise InputError(f"'{out.name}' is not number {self._wanted}; leave --dataset-id out, or rename --out")
            return out
        name = slug(content.name, "rfss")
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        # An unfinished export counts: it is to go on.
        found = [_NAME.fullmatch(each.removeprefix(".").removesuffix(".rfss-partial")) for each in names]
        taken = {int(match[1]): match[2] for match in found if match}
        ours = [number for number, other in taken.items() if other == name and self._wanted in (None, number)]
        free = next(number for number in range(FIRST_ID, 1000 + len(taken)) if number not in taken)
        number = self._wanted or min(ours, default=free)
        if number > 999:
            raise InputError(f"'{out}' has no free number from {FIRST_ID} to 999; name another folder")
        if taken.get(number, name) != name:
            raise InputError(
                f"number {number} is taken by 'Dataset{number:03d}_{taken[number]}' in '{out}'; choose another "
                "--dataset-id"
            )
        return out / f"Dataset{number:03d}_{name}"

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Number the classes; one file ending, one number of channels and one reader must do for all cases.

        Raises:
            InputError: images of several kinds, no training case, or class names that nnU-Net reserves.
        """
        if all(case.part == "test" for case in content.cases):
            raise InputError("no training case is left; leave --held-out-as-test out")
        endings = Counter(case.grid.suffix for case in content.cases)
        if len(endings) > 1:
            listed = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
            raise InputError(
                f"nnU-Net wants one kind of file, this data set has {listed}; label each kind in a workspace of its own"
            )
        for value, name in content.classes.items():
            if name in _RESERVED and value != content.ignore:
                raise InputError(f"class {value} is called '{name}', which nnU-Net reserves; rename it and label again")
        self._labels = LabelMap.consecutive(content.classes, content.ignore)
        self._colour = any_colour(content)
        ending = next(iter(endings))
        if ending == ".nii.gz":
            # ITK, nnU-Net's first choice, opens no sheared grid.
            self._reader = None if all(_straight(case.grid) for case in content.cases) else "NibabelIO"
        else:
            self._reader = "NaturalImage2DIO" if ending == ".png" else "Tiff3DIO"
        return {
            "label_map": {str(value): number for value, number in self._labels.values.items()},
            "labels": {name: number for number, name in self._labels.names.items()},
            "channels": self._channels(content),
            "file_ending": ending,
            "reader": self._reader,
        }

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write image channels and label map.

        Raises:
            LabelError: the label map holds a value that is no class of the data set.
        """
        labels = self._labels.apply(case.read_labels(), case.name)
        grid = three_dimensional(case.grid)
        images, targets = _PARTS[case.part]
        pixels = read_pixels(case, colour=self._colour)
        # The reader of natural images splits colours itself; the others want a file a channel.
        planes = [pixels[..., channel] for channel in range(3)] if self._colour and grid.suffix != ".png" else [pixels]
        paths = []
        for channel, plane in enumerate(planes):
            paths.append(f"{images}/{case.id}_{channel:04d}{grid.suffix}")
            write_image(plane, grid, folder / paths[-1])
        paths.append(f"{targets}/{case.id}{grid.suffix}")
        write_label(labels, grid, folder / paths[-1])
        if grid.suffix == ".tif":
            # Beside each file: Tiff3DIO knows no other way to say how large a voxel is.
            for part in (images, targets):
                paths.append(f"{part}/{case.id}.json")
                write_atomically(folder / paths[-1], json.dumps({"spacing": list(grid.spacing)}).encode())
        return CaseFiles(tuple(paths), {"images": paths[: len(planes)], "label": paths[len(planes)]})

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write ``dataset.json``.

        Raises:
            InputError: no training case was written.
        """
        training = sum(each.case.part == "train" for each in written)
        if not training:
            raise InputError(
                "none of the training cases can be exported; the cases that can be are the test part alone"
            )
        document = {
            "channel_names": self._channels(content),
            "labels": {"background": 0, **{name: number for number, name in self._labels.names.items()}},
            "numTraining": training,
            "file_ending": written[0].case.grid.suffix,
            "name": content.name,
            "description": "Pseudo-labels of RFSS; rfss-export.json says where each label map comes from",
        }
        if self._reader is not None:
            document["overwrite_image_reader_writer"] = self._reader
        write_atomically(folder / "dataset.json", (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())

    def _channels(self, content: ExportSet) -> dict[str, str]:
        """Return nnU-Net's channel names; ``CT`` chooses another normalisation, so it takes a DICOM's word for it."""
        if self._colour:
            return {"0": "R", "1": "G", "2": "B"}
        modalities = {case.modality for case in content.cases}
        modality = modalities.pop() if len(modalities) == 1 else "unknown"
        return {"0": {"CT": "CT", "MR": "MRI"}.get(modality, "image" if modality == "unknown" else modality)}


def _straight(grid: SourceGrid) -> bool:
    matrix = np.array(grid.affine)[:3, :3]
    cosines = matrix / np.linalg.norm(matrix, axis=0)
    return bool(np.abs(cosines.T @ cosines - np.eye(3)).max() < _STRAIGHT)

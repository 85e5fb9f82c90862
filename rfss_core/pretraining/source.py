"""The public sets that may train shipped weights, and ACDC for evaluation, as slices in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from rfss_core.errors import InputNotFoundError
from rfss_core.pretraining.holdout import assign_parts

UInt8Array = npt.NDArray[np.uint8]

LARGEST = 256
"""Slices are stored at this many pixels a side at most."""


@dataclass(frozen=True)
class Source:
    """One labelled set below the data folder."""

    name: str
    path: str
    """Folder with ``images/`` and ``labels/``, or a pack's .npz file."""
    split_set: str
    """Name under which patients are hashed (see :mod:`rfss_core.pretraining.holdout`)."""
    licence: str


SOURCES: tuple[Source, ...] = (
    Source("hippocampus", "hippocampus", "hippocampus", "CC BY-SA 4.0"),
    Source("prostate-mr", "prostate/mr", "prostate", "Apache-2.0"),
    Source("prostate-us", "prostate/us", "prostate", "Apache-2.0"),
    Source("fetal-head", "fetal-head", "fetal-head", "CC BY 4.0"),
    Source("fetal-head-pack", "pack/fetal-head.npz", "fetal-head", "CC BY 4.0"),
    Source("nuclei", "pack/nuclei.npz", "nuclei", "CC0"),
    Source("spine-mr", "pack/spine-mr.npz", "spine-mr", "CC BY"),
    Source("spleen-ct", "pack/spleen-ct.npz", "spleen-ct", "CC BY-SA"),
    Source("carotid-us", "pack/carotid-us.npz", "carotid-us", "CC BY"),
)
"""Everything that may train shipped weights."""

ACDC = Source("acdc", "acdc", "acdc", "CC BY-NC-SA 4.0")
"""Evaluation only: never packed, never trained on, never used to choose anything."""


def find_source(name: str) -> Source:
    """Return the set of this name.

    Raises:
        InputNotFoundError: there is none.
    """
    for source in (*SOURCES, ACDC):
        if source.name == name:
            return source
    raise InputNotFoundError(f"no set is named '{name}'; choose one of {', '.join(s.name for s in (*SOURCES, ACDC))}")


@dataclass(frozen=True)
class Slices:
    """Slices of one set, all at one square size.

    Attributes:
        images: [N, S, S] uint8, 0 and 255 at the volume's 0.5 and 99.5 percentiles.
        labels: [N, S, S] uint8, class values as in the source.
        patients: [N] identifiers.
        cases: [N] volume or image of each slice.
        positions: [N] float32, place along the slicing axis from 0 to 1; 0.5 for single images.
        axes: [N] uint8, slicing axis.
    """

    images: UInt8Array
    labels: UInt8Array
    patients: npt.NDArray[np.str_]
    cases: npt.NDArray[np.str_]
    positions: npt.NDArray[np.float32]
    axes: UInt8Array

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.images)

    def take(self, index: npt.NDArray[np.int64]) -> Slices:
        """Return the slices at ``index``."""
        return Slices(
            self.images[index],
            self.labels[index],
            self.patients[index],
            self.cases[index],
            self.positions[index],
            self.axes[index],
        )


@dataclass(frozen=True)
class _Volume:
    case: str
    patient: str
    image: npt.NDArray[np.float32]
    label: UInt8Array


def read_source(data: Path, source: Source, strides: tuple[int, int, int] = (4, 4, 1), size: int = 0) -> Slices:
    """Read all slices of one set.

    Args:
        data: the data folder (``$RFSS_DATA``).
        source: which set.
        strides: take every n-th slice along each axis of a volume (canonical RAS order); 0 leaves the axis out.
        size: pixels a side; 0 takes the power-of-two-ish size that holds the set's native pixels, 256 at most.

    Returns:
        The slices, resized to a square without regard for the aspect (as SAM 2 does).

    Raises:
        InputNotFoundError: the set is not below ``data``.
    """
    path = data / source.path
    if not path.exists():
        raise InputNotFoundError(f"set '{source.name}' is not at {path}; point RFSS_DATA at the data folder")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            count = len(archive["image"])
            cases = archive["case"].astype(np.str_)
            return Slices(
                archive["image"],
                archive["label"],
                cases,
                np.array([f"{case}-{index}" for index, case in enumerate(cases)], dtype=np.str_),
                np.full(count, 0.5, np.float32),
                np.zeros(count, np.uint8),
            )
    return _stack(list(_volumes(path)), strides, size)


def parts_of(data: Path, split_set: str) -> dict[str, str]:
    """Return train, validation or test for each patient of all sets that share ``split_set``."""
    patients: set[str] = set()
    for source in SOURCES:
        if source.split_set != split_set:
            continue
        path = data / source.path
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                patients.update(str(case) for case in archive["case"])
        else:
            patients.update(case_patient(file.name) for file in (path / "labels").iterdir())
    return dict(assign_parts(split_set, patients))


def case_patient(name: str) -> str:
    """Return the patient of a file of these sets."""
    stem = name.split(".")[0]
    return stem.split("_frame")[0]


def _volumes(folder: Path) -> Iterator[_Volume]:
    for label_file in sorted((folder / "labels").iterdir()):
        image_file = folder / "images" / label_file.name
        case = label_file.name.split(".")[0]
        if label_file.name.endswith(".nii.gz"):
            image = np.asarray(nib.as_closest_canonical(nib.load(image_file)).dataobj, dtype=np.float32)
            label = np.asarray(nib.as_closest_canonical(nib.load(label_file)).dataobj).astype(np.uint8)
        else:
            image = np.asarray(Image.open(image_file).convert("L"), dtype=np.float32)[:, :, None]
            label = np.asarray(Image.open(label_file)).astype(np.uint8)[:, :, None]
        low, high = np.percentile(image, (0.5, 99.5))
        image = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
        yield _Volume(case, case_patient(label_file.name), image, label)


def _stack(volumes: list[_Volume], strides: tuple[int, int, int], size: int) -> Slices:
    if not size:
        widest = max(max(volume.image.shape[:2]) for volume in volumes)
        size = min(LARGEST, 32 * math.ceil(widest / 32))
    images: list[UInt8Array] = []
    labels: list[UInt8Array] = []
    rows: list[tuple[str, str, float, int]] = []
    for volume in volumes:
        planar = volume.image.shape[2] == 1
        for axis, stride in enumerate((0, 0, 1) if planar else strides):
            if not stride:
                continue
            depth = volume.image.shape[axis]
            for z in range(0, depth, stride):
                image, label = np.take(volume.image, z, axis), np.take(volume.label, z, axis)
                # Canonical RAS to a radiologist's view: rows grow to posterior, columns to the patient's left.
                if not planar:
                    image, label = np.flip(image.T), np.flip(label.T)
                images.append(_square(image, size, smooth=True))
                labels.append(_square(label, size, smooth=False))
                rows.append((volume.patient, volume.case, (z + 0.5) / depth, axis))
    return Slices(
        np.stack(images),
        np.stack(labels),
        np.array([row[0] for row in rows], dtype=np.str_),
        np.array([row[1] for row in rows], dtype=np.str_),
        np.array([row[2] for row in rows], dtype=np.float32),
        np.array([row[3] for row in rows], dtype=np.uint8),
    )


def _square(plane: npt.NDArray[Any], size: int, *, smooth: bool) -> UInt8Array:
    pillow = Image.fromarray(np.ascontiguousarray(plane * 255 if smooth else plane).astype(np.uint8))
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(pillow.resize((size, size), way))

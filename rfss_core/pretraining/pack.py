"""The packed training data: one .npz a set, small enough to travel to a borrowed GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.segmentation import felzenszwalb

from rfss_core.errors import InputNotFoundError
from rfss_core.pretraining.source import SOURCES, Slices, Source, parts_of, read_source

REGION_SLICES = 300
"""Slices a set for which regions are computed: enough variety, little packing time."""


@dataclass(frozen=True)
class Pack:
    """Training or validation slices of one set.

    Attributes:
        name: the set.
        slices: its slices.
        regions: [M, S, S] uint8, Felzenszwalb regions of the first M slices: label maps that need no expert (the
            superpixel tasks of Ouyang et al., "Self-supervision with superpixels", ECCV 2020).
    """

    name: str
    slices: Slices
    regions: npt.NDArray[np.uint8]


def write_packs(data: Path, folder: Path) -> dict[str, dict[str, int]]:
    """Pack the training and validation patients of every set; test patients are left out.

    Args:
        data: the data folder (``$RFSS_DATA``).
        folder: where ``<part>-<set>.npz`` files go.

    Returns:
        Number of slices by part and set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {"train": {}, "validation": {}}
    for source in SOURCES:
        slices = read_source(data, source)
        parts = parts_of(data, source.split_set)
        order = np.random.default_rng(0).permutation(len(slices))
        for part, count in counts.items():
            keep = np.array([i for i in order if parts[str(slices.patients[i])] == part], dtype=np.int64)
            if len(keep):
                _write(folder / f"{part}-{source.name}.npz", source, slices.take(keep))
                count[source.name] = len(keep)
    return counts


def read_packs(folder: Path, part: str) -> list[Pack]:
    """Read every pack of one part (``train`` or ``validation``).

    Raises:
        InputNotFoundError: nothing was packed in ``folder``.
    """
    files = sorted(folder.glob(f"{part}-*.npz"))
    if not files:
        raise InputNotFoundError(
            f"no {part}-*.npz in {folder}; run `python -m rfss_core.pretraining pack --out {folder}` first"
        )
    packs = []
    for file in files:
        with np.load(file, allow_pickle=False) as archive:
            slices = Slices(*(archive[key] for key in ("images", "labels", "patients", "cases", "positions", "axes")))
            packs.append(Pack(file.stem.removeprefix(f"{part}-"), slices, archive["regions"]))
    return packs


def _write(file: Path, source: Source, slices: Slices) -> None:
    np.savez_compressed(
        file,
        images=slices.images,
        labels=slices.labels,
        patients=slices.patients,
        cases=slices.cases,
        positions=slices.positions,
        axes=slices.axes,
        regions=np.stack([_regions(image) for image in slices.images[:REGION_SLICES]]),
        licence=np.array(source.licence),
    )


def _regions(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    size = image.shape[0]
    small = image[:: size // 128, :: size // 128] if size >= 256 else image
    area = small.size
    found = felzenszwalb(small / 255.0, scale=100, sigma=0.8, min_size=max(12, area // 150))
    # 255 regions at most: what is beyond joins the background.
    found = np.where(found < 255, found + 1, 0)
    pillow = Image.fromarray(found.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(pillow)

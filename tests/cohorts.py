"""Small cohorts of synthetic volumes, and settings that keep a run on them short."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from rfss_core.settings import LabelSettings, load_settings

VOTE = {"segmenter": "label-fusion"}
"""Segmentation settings of runs that are not about the models."""


def write_cohort(folder: Path, patients: int, labelled: int, depth: int = 3, side: int = 40) -> Path:
    """Write volumes with a bright ellipse (1) around a dark core (2), on an oblique grid; the first are labelled."""
    rows, columns = np.mgrid[:side, :side]
    for number in range(patients):
        rng = np.random.default_rng(number)
        image = rng.normal(100, 12, (side, side, depth))
        label = np.zeros(image.shape, np.uint8)
        for z in range(depth):
            row, column = side / 2 + rng.uniform(-4, 4, 2)
            distance = np.hypot((rows - row) / rng.uniform(0.9, 1.2), columns - column)
            label[distance < side / 3.5, z] = 1
            label[distance < side / 8, z] = 2
        image += 120.0 * (label == 1) - 60.0 * (label == 2)
        turn = np.deg2rad(10)
        affine = np.array(
            [
                [-1.5 * np.cos(turn), 1.5 * np.sin(turn), 0, 20],
                [1.5 * np.sin(turn), 1.5 * np.cos(turn), 0, -30],
                [0, 0, 8, 5],
                [0, 0, 0, 1],
            ]
        )
        name = f"sub-{number:02d}.nii.gz"
        save(folder / "images" / name, image.astype(np.int16), affine)
        if number < labelled:
            save(folder / "labels" / name, label, affine)
    return folder


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=2)
    nib.save(image, path)


def settings_for(cohort: Path, workspace: Path, **changes: object) -> LabelSettings:
    """Return settings that keep a run short: the real models, few neighbours, a gate that untrained models can pass."""
    given: dict[str, object] = {
        "images": str(cohort / "images"),
        "labels": str(cohort / "labels"),
        "workspace": str(workspace),
        "k": 3,
        "held_out": 0.5,
        "dataset": "ellipses",
        "quality": {"min_dice": 0.0, "bootstrap": 200},
    }
    return load_settings({**given, **changes})

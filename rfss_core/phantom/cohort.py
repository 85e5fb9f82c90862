"""Cohort of phantoms on disk, laid out as ``rfss label`` reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from rfss_core.errors import SettingsError
from rfss_core.phantom.anatomy import PHASES
from rfss_core.phantom.generator import Phantom, PhantomSettings

_NOTE = b"RFSS phantom: procedural, not a patient"


def write_cohort(
    folder: Path,
    patients: int,
    seed: int,
    labelled: int | None = None,
    settings: PhantomSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write ``images/patientNNN_frameFF.nii.gz`` for both phases, and ``labels/`` for the first patients.

    Same arguments, same bytes (on one machine and one set of library versions). Images vary in matrix size and in the
    direction in which their axes are stored, as scans from several hospitals do; qform and sform agree.

    Args:
        folder: where to write; created where missing, files of the same names are replaced.
        patients: number of phantoms.
        seed: seed of the cohort.
        labelled: how many phantoms, from the first, get label maps. Default: all.
        settings: geometry; rows and columns are the least that a scan has.
        progress: called with one line per phantom.

    Returns:
        The images' paths, sorted.

    Raises:
        SettingsError: ``patients`` below 1 or above 999, a negative seed, or ``labelled`` not from 0 to
            ``patients``.
    """
    if not 1 <= patients <= 999:
        raise SettingsError(f"patients must be from 1 to 999, got {patients}")
    if seed < 0:
        raise SettingsError(f"the seed must not be negative, got {seed}")
    labelled = patients if labelled is None else labelled
    if not 0 <= labelled <= patients:
        raise SettingsError(f"labelled must be from 0 to patients ({patients}), got {labelled}")
    geometry = settings or PhantomSettings()
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(1, patients + 1):
        random = np.random.default_rng([seed, number, 1])
        wider = random.integers(0, 3, 2) * 8
        sized = geometry.model_copy(
            update={"rows": geometry.rows + int(wider[0]), "columns": geometry.columns + int(wider[1])}
        )
        signs = tuple(int(sign) for sign in random.choice([-1, 1], 3))
        phantom = Phantom([seed, number], sized)
        for phase in PHASES:
            name = f"patient{number:03d}_frame{phantom.frames[phase]:02d}.nii.gz"
            scan = phantom.acquire(phase)
            _write(scan.pixels, scan.affine, signs, folder / "images" / name)
            written.append(folder / "images" / name)
            if number <= labelled:
                _write(scan.labels, scan.affine, signs, folder / "labels" / name)
        if progress is not None:
            known = "labelled" if number <= labelled else "not labelled"
            progress(f"patient{number:03d}: {phantom.anatomy.condition}, {known}")
    return sorted(written)


def _write(volume: npt.NDArray[Any], affine: npt.NDArray[np.float64], signs: tuple[int, ...], path: Path) -> None:
    """Write [Z, H, W] as NIfTI with axes (column, row, slice), reversing the axes whose sign is -1."""
    image = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
    image = image.as_reoriented(np.array([[axis, sign] for axis, sign in enumerate(signs)]))
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = _NOTE
    # nibabel writes gzip without name and time: same volume, same bytes.
    nib.save(image, path)

"""Held-out patients as a folder of images and labels, so that ``rfss evaluate`` cannot meet a training patient."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from rfss_core.errors import InputError
from rfss_core.pretraining.source import ACDC, case_patient, find_source, parts_of


def write_part(data: Path, name: str, out: Path, part: str = "test") -> int:
    """Write ``out/images`` and ``out/labels`` with one part of a set.

    Files are copied (links that lead out of a folder are refused by ``rfss``), packs unpacked into PNG. ACDC, which
    never trains, is copied whole.

    Args:
        data: the data folder (``$RFSS_DATA``).
        name: name of the set, for example ``hippocampus`` or ``fetal-head-pack``.
        out: a folder that holds nothing yet.
        part: ``test``, ``validation`` or ``train``.

    Returns:
        Number of cases.

    Raises:
        InputNotFoundError: an unknown set, or one that is not below ``data``.
        InputError: ``out`` holds something.
    """
    source = find_source(name)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"'{out}' is not empty; name a new folder")
    for side in ("images", "labels"):
        (out / side).mkdir(parents=True, exist_ok=True)
    parts = parts_of(data, source.split_set) if source is not ACDC else None
    path = (data / source.path).resolve()
    count = 0
    if path.suffix == ".npz":
        assert parts is not None
        with np.load(path, allow_pickle=False) as archive:
            for number, case in enumerate(archive["case"]):
                if parts[str(case)] == part:
                    # The patient comes first, where the default pattern of a name without one finds it.
                    file = f"sub-{case}_{number:04d}.png"
                    Image.fromarray(archive["image"][number]).save(out / "images" / file)
                    Image.fromarray(archive["label"][number]).save(out / "labels" / file)
                    count += 1
        return count
    for label in sorted((path / "labels").iterdir()):
        if parts is None or parts[case_patient(label.name)] == part:
            shutil.copyfile(path / "images" / label.name, out / "images" / label.name)
            shutil.copyfile(label, out / "labels" / label.name)
            count += 1
    return count

"""Held-out patients as a folder: nobody who trained, everybody who did not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfss_core.errors import InputError, InputNotFoundError
from rfss_core.imaging import discover
from rfss_core.pretraining.folder import write_part
from rfss_core.pretraining.holdout import assign_parts
from rfss_core.settings import ImagingSettings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for side in ("images", "labels"):
        folder = tmp_path / "data" / "hippocampus" / side
        folder.mkdir(parents=True)
        for number in range(50):
            (folder / f"hippocampus_{number:03d}.nii.gz").write_bytes(f"{side}{number}".encode())
    (tmp_path / "data" / "pack").mkdir()
    cases = np.array([f"fetus{number:03d}" for number in range(20)])
    planes = np.zeros((20, 8, 8), np.uint8)
    planes[:, 2:5, 2:5] = 1
    np.savez(tmp_path / "data" / "pack" / "fetal-head.npz", image=planes * 90, label=planes, case=cases)
    (tmp_path / "data" / "fetal-head" / "labels").mkdir(parents=True)
    return tmp_path / "data"


def test_only_the_asked_part_is_there(data: Path, tmp_path: Path) -> None:
    names = [f"hippocampus_{number:03d}" for number in range(50)]
    parts = assign_parts("hippocampus", names)
    assert write_part(data, "hippocampus", tmp_path / "out") == 40
    for side in ("images", "labels"):
        found = {path.name.split(".")[0]: path for path in (tmp_path / "out" / side).iterdir()}
        assert set(found) == {name for name in names if parts[name] == "test"}
        for name, path in found.items():
            assert path.read_bytes() == f"{side}{int(name[-3:])}".encode()


def test_a_pack_becomes_a_folder_that_the_product_reads(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    count = write_part(data, "fetal-head-pack", out)
    parts = assign_parts("fetal-head", [f"fetus{number:03d}" for number in range(20)])
    found = discover(str(out / "images"), str(out / "labels"), ImagingSettings())
    assert not found.quarantined
    assert {case.patient.removeprefix("sub-") for case in found.cases} == {
        name for name, part in parts.items() if part == "test"
    }
    assert count == len(found.cases)
    assert set(np.unique(np.asarray(Image.open(next((out / "labels").iterdir()))))) == {0, 1}


def test_full_folders_and_unknown_sets_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        write_part(data, "hippocampus", data)
    with pytest.raises(InputNotFoundError, match="no set is named 'hart'"):
        write_part(data, "hart", tmp_path / "out")

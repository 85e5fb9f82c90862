"""nnU-Net v2: what is written passes nnunetv2's own check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from exports import CLASSES, case_of, file_source, label_map, set_of
from PIL import Image

from rfss_core.datasets.exporters import EXPORTERS, ExportCase, ExportReport, export_cases
from rfss_core.errors import InputError
from rfss_core.settings import ExportSettings
from rfss_core.store import Workspace

CHECK = """
import multiprocessing, sys
fork = multiprocessing.get_context("fork")
multiprocessing.get_context = lambda method=None: fork  # spawned workers would import torch once more each
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
for folder in sys.argv[1:]:
    verify_dataset_integrity(folder, 1)
"""
"""nnunetv2's check, once a folder."""
SHEARED = np.array([[-0.9, 0.1, 0.9, 40.0], [0.1, 1.1, -0.2, -30.0], [0.05, 0.2, 4.0, 12.0], [0, 0, 0, 1.0]])


def export(cases: list[ExportCase], out: Path, classes=CLASSES, ignore: int | None = None, **changes) -> ExportReport:
    chosen = ExportSettings(format="nnunet", **changes)
    return export_cases(set_of(cases, classes, ignore), EXPORTERS["nnunet"](chosen), out, chosen)


def nifti(folder: Path, name: str, affine: np.ndarray, shape: tuple[int, ...] = (7, 6, 4)) -> Path:
    pixels = np.random.default_rng(len(name)).integers(0, 900, shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(pixels, affine), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "w")


def test_the_check_of_nnunet_passes(tmp_path: Path, workspace: Workspace) -> None:
    pytest.importorskip(
        "nnunetv2", reason="nnunetv2 is not installed; `make setup` installs it without its torchvision"
    )
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    straight = [
        nifti(tmp_path, "patient1_frame01", turn @ np.diag([-1.5, 1.5, 8.0, 1.0])),
        nifti(tmp_path, "b", np.eye(4)),
    ]
    cases = [case_of(workspace, file_source(path), seed=n, values=(0, 1, 4, 9, 10)) for n, path in enumerate(straight)]
    cases.append(case_of(workspace, file_source(nifti(tmp_path, "c", np.eye(4), (6, 5, 3, 1))), expert=True))
    test = case_of(workspace, file_source(nifti(tmp_path, "d", np.eye(4))), expert=True, part="test")
    volumes = export([*cases, test], tmp_path / "raw", {**CLASSES, 10: "ignore"}, ignore=10)
    sheared = export([case_of(workspace, file_source(nifti(tmp_path, "e", SHEARED)))], tmp_path / "Dataset007_Sheared")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8)).save(tmp_path / "grey.png")
    pictures = export(
        [case_of(workspace, file_source(tmp_path / f"{name}.png", "raster")) for name in ("rgb", "grey")],
        tmp_path / "raw",
        dataset_id=9,
    )
    tifffile.imwrite(tmp_path / "stack.tif", rng.integers(0, 256, (4, 9, 8), dtype=np.uint8), photometric="minisblack")
    stacks = export(
        [case_of(workspace, file_source(tmp_path / "stack.tif", "raster"))], tmp_path / "raw", dataset_id=10
    )
    folders = [str(report.folder) for report in (volumes, sheared, pictures, stacks)]
    assert [Path(folder).name for folder in folders] == [
        "Dataset501_hearts", "Dataset007_Sheared", "Dataset009_hearts", "Dataset010_hearts",
    ]  # fmt: skip
    raw = {**os.environ, "nnUNet_raw": str(tmp_path / "raw")}
    done = subprocess.run([sys.executable, "-c", CHECK, *folders], env=raw, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("verify_dataset_integrity Done.") == len(folders)
    assert "rror" not in done.stdout.replace("didn't see any error messages", "")
    assert "Mismatch" not in done.stdout
    assert "mismatch" not in done.stdout

    document = json.loads((volumes.folder / "dataset.json").read_text())
    assert document["labels"] == {"background": 0, "RV": 1, "Myo": 2, "left ventricle": 3, "ignore": 4}
    assert document["numTraining"] == 3
    assert volumes.manifest["plan"]["label_map"] == {"1": 1, "4": 2, "9": 3, "10": 4}
    assert [path.name for path in (volumes.folder / "imagesTs").iterdir()] == ["d_0000.nii.gz"]
    assert [path.name for path in (volumes.folder / "labelsTs").iterdir()] == ["d.nii.gz"]
    assert (volumes.folder / "imagesTr" / "patient1_frame01_0000.nii.gz").is_file()
    wide = nib.load(volumes.folder / "labelsTr" / "c.nii.gz")
    assert wide.shape == (6, 5, 3)
    assert json.loads((pictures.folder / "dataset.json").read_text())["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert np.asarray(Image.open(pictures.folder / "imagesTr" / "grey_0000.png")).shape == (5, 7, 3)
    stack = tifffile.imread(stacks.folder / "labelsTr" / "stack.tif")
    assert np.array_equal(stack, np.select([label_map((4, 9, 8), 0) == value for value in CLASSES], [1, 2, 3]))


def test_numbers_are_free_or_asked_for(tmp_path: Path, workspace: Workspace) -> None:
    case = case_of(workspace, file_source(nifti(tmp_path, "a", np.eye(4))))
    (tmp_path / "raw" / "Dataset501_Other").mkdir(parents=True)
    first = export([case], tmp_path / "raw")
    assert first.folder.name == "Dataset502_hearts"
    assert export([case], tmp_path / "raw").existed
    with pytest.raises(InputError, match="number 501 is taken by 'Dataset501_Other'"):
        export([case], tmp_path / "raw", dataset_id=501)
    with pytest.raises(InputError, match="is not number 8"):
        export([case], tmp_path / "Dataset007_x", dataset_id=8)


def test_what_nnunet_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, workspace: Workspace) -> None:
    case = case_of(workspace, file_source(nifti(tmp_path, "a", np.eye(4))))
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(tmp_path / "p.png")
    picture = case_of(workspace, file_source(tmp_path / "p.png", "raster"))
    with pytest.raises(InputError, match=r"one kind of file, this data set has 1 \.nii\.gz, 1 \.png"):
        export([case, picture], tmp_path / "raw")
    with pytest.raises(InputError, match="class 1 is called 'ignore', which nnU-Net reserves"):
        export([case], tmp_path / "raw", {**CLASSES, 1: "ignore"})
    held_out = case_of(workspace, file_source(nifti(tmp_path, "h", np.eye(4))), part="test")
    with pytest.raises(InputError, match="no training case"):
        export([held_out], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_label_map_with_other_values_is_left_out(tmp_path: Path, workspace: Workspace) -> None:
    good = case_of(workspace, file_source(nifti(tmp_path, "a", np.eye(4))))
    odd = case_of(workspace, file_source(nifti(tmp_path, "odd", np.eye(4))), values=(0, 1, 7))
    report = export([good, odd], tmp_path / "raw")
    [left] = report.left_out
    assert (left.name, left.reason) == ("odd", "bad_label")
    assert "holds 7, no class of the data set (1, 4, 9)" in left.message
    assert not list(report.folder.rglob("odd*"))

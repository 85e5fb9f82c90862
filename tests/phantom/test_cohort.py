"""Cohorts on disk: file names, geometry in the header, reproducible bytes, bad arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rfss_core.errors import SettingsError
from rfss_core.phantom import Phantom, PhantomSettings, write_cohort
from rfss_core.phantom.__main__ import main

SMALL = PhantomSettings(rows=48, columns=48, slices=4, pixel_mm=4.0, step_mm=18.0)


def relative(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, patients=4, seed=7, labelled=2, settings=SMALL)
    return folder


def test_each_phantom_has_two_frames_and_the_first_have_labels(cohort: Path) -> None:
    images = [path.name for path in sorted((cohort / "images").iterdir())]
    labels = [path.name for path in sorted((cohort / "labels").iterdir())]
    assert [name[:10] for name in images] == [f"patient{number:03d}" for number in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert [name[10:] for name in images[::2]] == ["_frame01.nii.gz"] * 4
    assert labels == images[:4]


def test_same_arguments_same_bytes(cohort: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path, patients=4, seed=7, labelled=2, settings=SMALL)
    assert relative(tmp_path) == relative(cohort)
    for name in relative(cohort):
        assert (tmp_path / name).read_bytes() == (cohort / name).read_bytes(), name


def test_a_phantom_does_not_depend_on_the_size_of_its_cohort(cohort: Path, tmp_path: Path) -> None:
    for path in write_cohort(tmp_path, patients=2, seed=7, labelled=0, settings=SMALL):
        assert path.read_bytes() == (cohort / "images" / path.name).read_bytes()


def test_labels_lie_on_their_images_grid(cohort: Path) -> None:
    for path in (cohort / "labels").iterdir():
        label, image = nib.load(path), nib.load(cohort / "images" / path.name)
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)
        assert (label.get_data_dtype(), image.get_data_dtype()) == (np.uint8, np.int16)
        for volume in (label, image):
            assert (int(volume.header["qform_code"]), int(volume.header["sform_code"])) == (1, 1)
            np.testing.assert_allclose(volume.get_qform(), volume.affine, atol=1e-4)
            np.testing.assert_allclose(volume.header.get_zooms(), (4.0, 4.0, 18.0), rtol=1e-5)
            assert b"not a patient" in volume.header["descrip"].tobytes()


def test_reversed_axes_are_undone_by_the_affine(tmp_path: Path) -> None:
    paths = write_cohort(tmp_path, patients=8, seed=1, settings=SMALL)
    stored = {nib.aff2axcodes(nib.load(path).affine) for path in paths}
    assert len(stored) > 2
    for number, path in enumerate(paths[::2], start=1):
        image = nib.load(path)
        wanted = nib.orientations.axcodes2ornt(("L", "P", "I"))
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), wanted)
        straight = image.as_reoriented(turn)
        columns, rows, _ = straight.shape
        phantom = Phantom([1, number], SMALL.model_copy(update={"rows": rows, "columns": columns}))
        scan = phantom.acquire("ED")
        np.testing.assert_array_equal(np.asarray(straight.dataobj).transpose(2, 1, 0), scan.pixels)
        np.testing.assert_allclose(straight.affine, scan.affine, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0, "seed": 0}, "patients must be from 1 to 999, got 0"),
        ({"patients": 1000, "seed": 0}, "got 1000"),
        ({"patients": 2, "seed": 0, "labelled": 3}, "labelled must be from 0 to patients"),
        ({"patients": 2, "seed": -1}, "must not be negative, got -1"),
    ],
)
def test_bad_arguments_write_nothing(arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        write_cohort(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_cohort(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rfss_core.phantom", str(tmp_path / "out"), "--patients", "2", "--labelled", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 phantoms (procedural, not patients), 4 images, 2 labelled" in done.stdout
    assert len(relative(tmp_path / "out")) == 6


def test_the_command_names_a_bad_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "out"), "--patients", "0"])
    assert ended.value.code == 2
    assert "patients must be from 1 to 999, got 0" in capsys.readouterr().err


def test_the_command_names_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "out"), "--patients", "1"])
    assert ended.value.code == 2
    assert "out" in capsys.readouterr().err

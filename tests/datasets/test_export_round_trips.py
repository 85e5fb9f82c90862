"""Label maps and geometry are the same after export and re-import, whatever the source's grid."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr
from exports import CLASSES, case_of, file_source, label_map, set_of, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rfss_core.datasets import read_dataset
from rfss_core.datasets.exporters import EXPORTERS, ExportCase, ExportReport, export_cases
from rfss_core.imaging import CaseSource, SourceGrid, read_image, read_label
from rfss_core.settings import ExportSettings, ImagingSettings
from rfss_core.store import Workspace

KEEP = ImagingSettings(empty_labels="keep")


def export(cases: list[ExportCase], out: Path, form: str, classes: dict[int, str] = CLASSES) -> ExportReport:
    chosen = ExportSettings(format=form)
    return export_cases(set_of(cases, classes), EXPORTERS[form](chosen), out, chosen)


def detail(report: ExportReport, case_id: str) -> dict:
    return next(each["detail"] for each in report.manifest["cases"] if each["case"] == case_id)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Rotated, permuted, flipped and sometimes sheared, with unequal spacing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    flips = np.diag(rng.choice([-1.0, 1.0], 3))
    shear = np.eye(3)
    if draw(st.booleans()):
        shear[0, 2] = 0.2
    mild = turn if draw(st.booleans()) else np.eye(3)[rng.permutation(3)]
    affine = np.eye(4)
    affine[:3, :3] = mild @ flips @ shear @ np.diag(rng.uniform(0.4, 6.0, 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


@given(affine=affines(), sform=st.sampled_from([0, 1, 2, 4]), qform=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_nifti_grid_comes_back(
    tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray, sform: int, qform: int, seed: int
) -> None:
    tmp = tmp_path_factory.mktemp("grid")
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(2, 7, 3))
    image = nib.Nifti1Image(rng.integers(0, 1000, shape, dtype=np.int16), affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, tmp / "a.nii.gz")
    source = nib.load(tmp / "a.nii.gz")
    case = case_of(Workspace.open(tmp / "w"), file_source(tmp / "a.nii.gz"), seed=seed)
    labels = label_map(case.grid.canonical_shape, seed)
    expected = case.grid.to_source(labels)
    renumbered = np.select([expected == value for value in CLASSES], [1, 2, 3], 0)
    for form, values in (("nifti", expected), ("monai", expected), ("bids", expected), ("nnunet", renumbered)):
        report = export([case], tmp / form, form)
        written = nib.load(report.folder / detail(report, "a")["label"])
        assert written.shape == source.shape
        assert np.array_equal(written.affine, source.affine)
        for field in ("sform_code", "qform_code", "pixdim", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
            assert np.array_equal(written.header[field], source.header[field]), field
        assert np.array_equal(np.asarray(written.dataobj), values)
        found = detail(report, "a")
        for path in found.get("images", [found["image"]] if "image" in found else []):
            picture = nib.load(report.folder / path)
            assert np.array_equal(picture.affine, source.affine)
            assert np.array_equal(np.asarray(picture.dataobj), np.asarray(source.dataobj))
    report = export([case], tmp / "zarr", "ome-zarr")
    group = zarr.open_group(str(report.folder / detail(report, "a")["label"]), mode="r")
    assert np.array_equal(group["s0"][:], labels)
    grid = SourceGrid.from_json(group.attrs["rfss"]["grid"])
    assert grid == case.grid
    assert np.array_equal(grid.to_source(np.asarray(group["s0"][:])), expected)
    scale = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == pytest.approx(case.grid.spacing)


@pytest.mark.parametrize("colour", [False, True])
def test_a_picture_comes_back(tmp_path: Path, colour: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 5, 3) if colour else (7, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    case = case_of(Workspace.open(tmp_path / "w"), file_source(tmp_path / "a.png", "raster"))
    [labels] = label_map((1, 7, 5), 0)
    for form, values in (
        ("nifti", labels),
        ("monai", labels),
        ("nnunet", np.select([labels == v for v in CLASSES], [1, 2, 3])),
    ):
        report = export([case], tmp_path / form, form)
        found = detail(report, "a")
        assert found["label"].endswith(".png")
        assert np.array_equal(np.asarray(Image.open(report.folder / found["label"])), values)
        for path in found.get("images", [found["image"]] if "image" in found else []):
            assert np.array_equal(np.asarray(Image.open(report.folder / path)), pixels)
    # BIDS knows no pictures: columns become i, rows j.
    report = export([case], tmp_path / "bids", "bids")
    written = nib.load(report.folder / detail(report, "a")["label"])
    assert np.array_equal(np.asarray(written.dataobj)[..., 0], labels.T)
    assert np.array_equal(written.affine, np.diag([-1.0, -1.0, 1.0, 1.0]))
    report = export([case], tmp_path / "zarr", "ome-zarr")
    found = detail(report, "a")
    assert np.array_equal(zarr.open_group(str(report.folder / found["label"]), mode="r")["s0"][0], labels)
    stored = np.asarray(zarr.open_group(str(report.folder / found["image"]), mode="r")["s0"])
    assert np.array_equal(np.moveaxis(stored[:, 0], 0, -1) if colour else stored[0], pixels)


def test_a_series_comes_back_as_nifti(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 999, (4, 6, 5))
    oblique = (0.9848077530122081, 0.17364817766693033, 0.0, 0.0, 0.0, -1.0)
    files = write_series(tmp_path / "s", pixels, oblique, (2, 0, 3, 1))
    source = CaseSource("s", "s", "P7", "MR", "dicom", files, None)
    case = case_of(Workspace.open(tmp_path / "w"), source)
    for form in ("nifti", "bids", "monai"):
        report = export([case], tmp_path / form, form)
        path = report.folder / detail(report, "s")["label"]
        labelled = CaseSource("s", "s", "P7", "MR", "dicom", files, path)
        again = read_label(labelled, read_image(source, KEEP).grid, KEEP)
        assert np.array_equal(again, label_map(case.grid.canonical_shape, 0))


def test_a_tree_is_a_data_set_and_pairs_with_its_images(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    for name in ("a", "b"):
        nib.save(
            nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / f"{name}.nii.gz"
        )
    cases = [case_of(workspace, file_source(tmp_path / f"{name}.nii.gz"), expert=name == "b") for name in ("a", "b")]
    report = export(cases, tmp_path / "out", "nifti")
    dataset = read_dataset(tmp_path / "out")
    assert [entry.case for entry in dataset.entries] == ["a"]
    assert dataset.meta == {"k": 3, "exported_from": "a" * 64}
    rows = (tmp_path / "out" / "cases.csv").read_text().splitlines()
    assert rows[1:] == ["a,a,p1,a.nii.gz,pseudo-label,accept,0.75,,5", "b,b,p1,b.nii.gz,expert,,,,5"]
    assert report.count("expert") == report.count("pseudo-label") == 1


def test_monai_loads_what_was_written(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.data import load_decathlon_datalist
        from monai.transforms import LoadImaged
    workspace = Workspace.open(tmp_path / "w")
    affine = np.array([[-0.9, 0.1, 0.2, 40.0], [0.1, 1.1, -0.2, -30.0], [0.05, 0.2, 4.0, 12.0], [0, 0, 0, 1.0]])
    cases = []
    for number, name in enumerate(("a", "b", "c")):
        pixels = np.random.default_rng(number).integers(0, 99, (5, 4, 3), dtype=np.int16)
        nib.save(nib.Nifti1Image(pixels, affine), tmp_path / f"{name}.nii.gz")
        part = "test" if name == "c" else "train"
        source = file_source(tmp_path / f"{name}.nii.gz")
        cases.append(case_of(workspace, source, seed=number, expert=name != "a", part=part))
    report = export(cases, tmp_path / "out", "monai")
    listed = load_decathlon_datalist(str(report.folder / "dataset.json"), True, "training")
    assert [(item["case"], item["label_source"], item["weight"]) for item in listed] == [
        ("a", "pseudo-label", 0.75),
        ("b", "expert", 1.0),
    ]
    [held_out] = load_decathlon_datalist(str(report.folder / "dataset.json"), True, "test")
    for number, item in enumerate([*listed, held_out]):
        with warnings.catch_warnings():
            # Of a reader that is tried first and has no decoder here.
            warnings.simplefilter("ignore", UserWarning)
            loaded = LoadImaged(keys=["image", "label"])(item)
        grid = cases[number].grid
        assert np.array_equal(loaded["label"].numpy(), grid.to_source(label_map(grid.canonical_shape, number)))
        assert np.allclose(loaded["label"].affine, loaded["image"].affine)
        assert loaded["image"].shape == loaded["label"].shape
    assert json.loads((report.folder / "dataset.json").read_text())["labels"] == {
        "0": "background", "1": "RV", "4": "Myo", "9": "left ventricle",
    }  # fmt: skip


def test_ome_zarrs_reader_opens_image_and_labels(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader
    pixels = np.random.default_rng(0).integers(0, 99, (300, 200, 3), dtype=np.int16)
    nib.save(nib.Nifti1Image(pixels, np.diag([0.5, 0.7, 8.0, 1.0])), tmp_path / "a.nii.gz")
    case = case_of(Workspace.open(tmp_path / "w"), file_source(tmp_path / "a.nii.gz"))
    report = export([case], tmp_path / "out", "ome-zarr")
    nodes = list(Reader(parse_url(report.folder / "a.ome.zarr"))())
    image, labels = nodes[0], nodes[-1]
    assert [level.shape for level in image.data] == [level.shape for level in labels.data]
    assert image.data[0].shape == (3, 200, 300)
    assert len(image.data) > 1
    assert np.array_equal(np.asarray(labels.data[0]), label_map((3, 200, 300), 0))
    assert set(np.unique(np.asarray(labels.data[-1]))) <= {0, *CLASSES}
    assert {key for key in labels.metadata["color"] if key} == set(CLASSES)
    assert labels.metadata["properties"][4] == {"class": "Myo"}

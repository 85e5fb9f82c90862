"""Public data sets' layouts: what each becomes, resuming, links, and bad input found before hours are spent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import layout_folders
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rfss_core.datasets.layouts import LAYOUTS
from rfss_core.datasets.layouts.conversion import Conversion, convert
from rfss_core.errors import InputNotFoundError, LayoutError
from rfss_core.events import ChunkFinished, Event, EventStream
from rfss_core.imaging import discover, read_image, read_label
from rfss_core.settings import LabelSettings, load_settings
from rfss_core.settings.conversion import ConversionSettings

LABELLED = {"acdc": 6, "mnms": 6, "btcv": 3, "flare22": 3, "refuge": 4, "busi": 4}
UNLABELLED = {"acdc": 2, "mnms": 3, "btcv": 1, "flare22": 2, "refuge": 2, "busi": 0}
PATIENTS = {"acdc": 4, "mnms": 5, "btcv": 4, "flare22": 5, "refuge": 6, "busi": 4}


@pytest.fixture
def shipped(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: getattr(layout_folders, name)(tmp_path / "shipped")  # type: ignore[no-any-return]


def settings_of(out: Path) -> LabelSettings:
    return load_settings(
        {"images": str(out / "images"), "labels": str(out / "labels"), "workspace": "w"}, out / "settings.yaml"
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_converted_folder_is_what_rfss_reads(name: str, shipped: Callable[[str], Path], tmp_path: Path) -> None:
    """Names pair, patients are the publisher's, labels hold the named classes, and nothing is quarantined."""
    out = tmp_path / "out"
    result = convert(shipped(name), out)
    assert (result.layout.name, result.labelled, result.unlabelled) == (name, LABELLED[name], UNLABELLED[name])
    settings = settings_of(out)
    found = discover(settings.images, settings.labels, settings.imaging)
    assert not found.quarantined
    assert sum(case.label is not None for case in found.cases) == LABELLED[name]
    assert len(found.cases) == LABELLED[name] + UNLABELLED[name]
    lines = [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]
    told = {line["name"]: line["patient"] for line in lines}
    assert {case.name: case.patient for case in found.cases} == told
    assert len(set(told.values())) == PATIENTS[name] == result.patients
    seen: set[int] = set()
    for case in found.cases:
        volume = read_image(case, settings.imaging)
        if case.label is not None:
            seen |= set(np.unique(read_label(case, volume.grid, settings.imaging)).tolist())
    assert seen - {0} == set(settings.imaging.classes or {}) == set(range(1, len(LAYOUTS[name].classes) + 1))
    table = pd.read_csv(out / "metadata.csv", dtype=str, keep_default_na=False)
    assert table["name"].tolist() == sorted(told)
    receipt = json.loads((out / "source.json").read_text())
    assert (receipt["complete"], receipt["images"], receipt["labels"]) == (True, len(told), LABELLED[name])
    for line in lines:
        assert all(len(origin["sha256"]) == 64 for origin in (line["image"], *line["masks"]))


def test_frames_keep_voxels_geometry_and_type(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    source = shipped("mnms")
    convert(source, tmp_path / "out", "mnms")
    series = nib.load(source / "Training" / "Labeled" / "A1D0Q7" / "A1D0Q7_sa.nii.gz")
    masks = nib.load(source / "Training" / "Labeled" / "A1D0Q7" / "A1D0Q7_sa_gt.nii.gz")
    frame = nib.load(tmp_path / "out" / "images" / "sub-A1D0Q7_frame03.nii.gz")
    label = nib.load(tmp_path / "out" / "labels" / "sub-A1D0Q7_frame03.nii.gz")
    assert np.array_equal(np.asarray(frame.dataobj), np.asarray(series.dataobj)[..., 3])
    assert np.array_equal(np.asarray(label.dataobj), np.asarray(masks.dataobj)[..., 3])
    assert np.array_equal(frame.affine, series.affine)
    assert frame.get_data_dtype() == series.get_data_dtype()
    assert frame.header.get_zooms() == series.header.get_zooms()[:3]
    assert (frame.header["qform_code"], frame.header["sform_code"]) == (1, 1)
    assert b"Jane" not in frame.header.binaryblock
    table = pd.read_csv(tmp_path / "out" / "metadata.csv").set_index("name")
    assert table.loc["sub-A1D0Q7_frame03", "phase"] == "ES"
    assert table.loc["sub-A1D0Q7_frame03", "vendor"] == "A"


def test_scaled_frames_keep_their_values(tmp_path: Path) -> None:
    source = layout_folders.mnms(tmp_path / "shipped")
    path = source / "Training" / "Unlabeled" / "C4K8M1" / "C4K8M1_sa.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj) * 0.25 + 7.5
    scaled = nib.Nifti1Image(values, image.affine, image.header)
    nib.save(scaled, path)
    written = nib.load(path)
    assert written.dataobj.slope != 1
    convert(source, tmp_path / "out")
    frame = nib.load(tmp_path / "out" / "images" / "sub-C4K8M1_frame01.nii.gz")
    assert np.allclose(np.asarray(frame.dataobj), np.asarray(written.dataobj)[..., 1], atol=1e-4)


@pytest.mark.parametrize(("name", "unlabelled"), [("acdc", 10), ("mnms", 14)])
def test_all_frames_of_a_cine_series(
    name: str, unlabelled: int, shipped: Callable[[str], Path], tmp_path: Path
) -> None:
    result = convert(shipped(name), tmp_path / "out", settings=ConversionSettings(frames="all"))
    assert (result.labelled, result.unlabelled) == (LABELLED[name], unlabelled)
    if name == "acdc":
        # patient001_frame02 is index 1 of the series.
        made = nib.load(tmp_path / "out" / "images" / "patient001_frame02.nii.gz")
        series = nib.load(tmp_path / "shipped" / "ACDC" / "training" / "patient001" / "patient001_4d.nii.gz")
        assert np.array_equal(np.asarray(made.dataobj), np.asarray(series.dataobj)[..., 1])


def test_pictures_are_recoded_and_merged(tmp_path: Path) -> None:
    convert(layout_folders.refuge(tmp_path / "r"), tmp_path / "refuge")
    rim_and_cup = np.asarray(Image.open(tmp_path / "refuge" / "labels" / "g0001.png"))
    shift = -2
    assert np.array_equal(rim_and_cup == 2, layout_folders.disc(4, shift=shift))
    assert np.array_equal(rim_and_cup > 0, layout_folders.disc(8, shift=shift))
    convert(layout_folders.busi(tmp_path / "b"), tmp_path / "busi")
    lesions = np.asarray(Image.open(tmp_path / "busi" / "labels" / "benign-0002.png"))
    wanted = layout_folders.disc(3, shift=-6) | layout_folders.disc(3, shift=6)
    assert np.array_equal(lesions, wanted.astype(np.uint8))
    assert not np.asarray(Image.open(tmp_path / "busi" / "labels" / "normal-0001.png")).any()


def test_again_does_nothing_and_a_change_redoes_its_case(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = shipped("btcv"), tmp_path / "out"
    convert(source, out)
    before = {path: path.stat().st_mtime_ns for path in sorted((out / "images").iterdir())}
    again = convert(source, out)
    assert again.resumed == 4
    assert {path: path.stat().st_mtime_ns for path in sorted((out / "images").iterdir())} == before
    training = source / "RawData" / "Training"
    layout_folders.save_nifti(training / "img" / "img0002.nii.gz", layout_folders.rings(77, 13)[0])
    for part in ("img/img0003.nii.gz", "label/label0003.nii.gz"):
        (training / part).unlink()
    assert convert(source, out).resumed == 2
    assert sorted(path.name for path in (out / "images").iterdir()) == [
        "img0001.nii.gz", "img0002.nii.gz", "img0061.nii.gz",
    ]  # fmt: skip
    assert (out / "images" / "img0002.nii.gz").read_bytes() == (training / "img" / "img0002.nii.gz").read_bytes()
    assert len((out / "provenance.jsonl").read_text().splitlines()) == 3


def test_an_interrupted_conversion_goes_on(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, ChunkFinished) and event.chunk == "FLARE22_Tr_0002":
            raise StopError

    source, out, events = shipped("flare22"), tmp_path / "out", EventStream()
    events.subscribe(stop)
    with pytest.raises(StopError):
        convert(source, out, events=events)
    with (out / "provenance.jsonl").open("a") as stream:
        stream.write('{"name": "FLARE22_Tr_0003", "pat')
    assert json.loads((out / "source.json").read_text())["complete"] is False
    assert convert(source, out).resumed == 2
    whole = tmp_path / "whole"
    convert(source, whole)
    for path in sorted(whole.rglob("*")):
        if path.is_file():
            assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_links_share_bytes_where_nothing_changes(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = shipped("acdc"), tmp_path / "out"
    assert convert(source, out, settings=ConversionSettings(link=True)).linked == 14
    original = source / "training" / "patient001" / "patient001_frame01.nii.gz"
    assert (out / "images" / "patient001_frame01.nii.gz").samefile(original)


def _remove(*parts: str) -> Callable[[Path], None]:
    return lambda folder: (folder.joinpath(*parts)).unlink()


def _mask_value(*parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder.joinpath(*parts)
        if path.name.endswith(".gz"):
            image = nib.load(path)
            array = np.asarray(image.dataobj).copy()
            array[5, 5] = 9 if array.ndim == 4 else 77
            nib.save(nib.Nifti1Image(array, image.affine), path)
        else:
            array = np.asarray(Image.open(path).convert("L")).copy()
            array[0, 0] = 17
            Image.fromarray(array).save(path)

    return change


TRAINING = ("training", "patient001")
LABELED = ("Training", "Labeled", "A0S9V9")
BAD: list[tuple[str, Callable[[Path], None], str]] = [
    ("acdc", _remove(*TRAINING, "patient001_frame01_gt.nii.gz"), "patient001_frame01.nii.gz: has no mask"),
    ("acdc", _remove(*TRAINING, "patient001_frame01.nii.gz"), "patient001_frame01_gt.nii.gz: this mask has no image"),
    ("acdc", _mask_value(*TRAINING, "patient001_frame01_gt.nii.gz"), "holds value 77; masks of acdc hold 0, 1, 2, 3"),
    ("mnms", _remove("211230_M&Ms_Dataset_information.csv"), "no CSV table with the columns External code"),
    ("mnms", _remove(*LABELED, "A0S9V9_sa_gt.nii.gz"), "A0S9V9_sa.nii.gz: has no mask"),
    ("mnms", _mask_value(*LABELED, "A0S9V9_sa_gt.nii.gz"), "holds value 9; masks of mnms hold 0, 1, 2, 3"),
    ("btcv", _remove("RawData", "Training", "label", "label0002.nii.gz"), "img0002.nii.gz: has no mask"),
    ("btcv", _remove("RawData", "Training", "img", "img0002.nii.gz"), "label0002.nii.gz: this label has no image"),
    ("refuge", _remove("Annotation-Training400", "Disc_Cup_Masks", "Glaucoma", "g0001.bmp"), "g0001.jpg: has no mask"),
    ("refuge", _mask_value("Annotation-Training400", "Disc_Cup_Masks", "Glaucoma", "g0002.bmp"), "holds value 17"),
    ("busi", _remove("benign", "benign (1)_mask.png"), "benign (1).png: has no mask benign (1)_mask.png"),
    ("busi", _mask_value("benign", "benign (2)_mask_1.png"), "holds value 17; masks of busi hold 0, 1, 255"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_bad_folders_are_refused_in_one_line(
    name: str, spoil: Callable[[Path], None], message: str, shipped: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = shipped(name), tmp_path / "out"
    spoil(source)
    with pytest.raises(LayoutError) as caught:
        convert(source, out)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # Nothing unlabelled was copied before.
    assert not [path for path in out.rglob("*") if path.name.startswith(("img0061", "T000", "sub-C"))]


def test_flare_labels_must_be_whole(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    source = shipped("flare22")
    labels = source / "Training" / "FLARE22_LabeledCase50" / "labels"
    whole = (labels / "FLARE22_Tr_0002.nii.gz").read_bytes()
    (labels / "FLARE22_Tr_0002.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LayoutError, match=r"FLARE22_Tr_0002\.nii\.gz"):
        convert(source, tmp_path / "out")
    (labels / "FLARE22_Tr_0002.nii.gz").unlink()
    with pytest.raises(LayoutError, match=r"FLARE22_Tr_0002_0000\.nii\.gz: has no mask labels/FLARE22_Tr_0002"):
        convert(source, tmp_path / "out")
    layout_folders.save_nifti(labels / "FLARE22_Tr_0002.nii.gz", np.ones((5, 5, 2), np.uint8))
    with pytest.raises(LayoutError, match="has shape"):
        convert(source, tmp_path / "out")


def test_a_table_must_fit_its_series(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    source = shipped("mnms")
    table = source / "211230_M&Ms_Dataset_information.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line.replace(",0,2.0,", ",0,9,") for line in lines))
    with pytest.raises(LayoutError, match="names frame 9, but the file has 4 frames"):
        convert(source, tmp_path / "out")
    table.write_text("\n".join(line.replace(",0,2.0,", ",1,2.0,") for line in lines))
    with pytest.raises(LayoutError, match="holds no foreground in frame 1"):
        convert(source, tmp_path / "out")
    table.write_text("\n".join(line for line in lines if "A0S9V9" not in line))
    with pytest.raises(LayoutError, match="A0S9V9: the table has no row"):
        convert(source, tmp_path / "out")


def test_keep_going_lists_what_was_left_out(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    source, out = shipped("acdc"), tmp_path / "out"
    _remove(*TRAINING, "patient001_frame01_gt.nii.gz")(source)
    _mask_value("training", "patient002", "patient002_frame03_gt.nii.gz")(source)
    result = convert(source, out, settings=ConversionSettings(keep_going=True))
    assert (result.labelled, result.unlabelled) == (4, 3)
    left_out = json.loads((out / "source.json").read_text())["left_out"]
    assert set(left_out) == {"patient001_frame01", "patient002_frame03"}
    assert not list(out.glob("*/patient002_frame03*"))


def test_folders_that_are_no_data_set(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(LayoutError, match=r"laid out like none of acdc, mnms.*scan\.nii\.gz"):
        convert(tmp_path / "other", tmp_path / "out")
    with pytest.raises(LayoutError, match=r"no file is named like img/img0001\.nii\.gz"):
        convert(tmp_path / "other", tmp_path / "out", "btcv")
    with pytest.raises(LayoutError, match="no layout is known as 'kits'"):
        convert(tmp_path / "other", tmp_path / "out", "kits")
    with pytest.raises(InputNotFoundError, match="nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    source = shipped("busi")
    shutil.copytree(layout_folders.refuge(tmp_path / "r"), source / "REFUGE")
    with pytest.raises(LayoutError, match="refuge and busi"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_folders_are_left_alone(shipped: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    with pytest.raises(LayoutError, match="exists already"):
        convert(shipped("busi"), out)
    done: Conversion = convert(tmp_path / "shipped" / "Dataset_BUSI_with_GT", tmp_path / "b")
    with pytest.raises(LayoutError, match="another data set"):
        convert(layout_folders.refuge(tmp_path / "r"), done.folder)

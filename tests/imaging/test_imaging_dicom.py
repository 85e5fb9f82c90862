"""DICOM series: placed as the standard says, refused where mixed."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from rfss_core.errors import GeometryError, UnreadableImageError
from rfss_core.imaging import discover, read_image, read_label, source_digest, write_label

OBLIQUE = (0.9848077530122081, 0.17364817766693033, 0.0, 0.0, 0.0, -1.0)
VOLUME = np.random.default_rng(3).integers(0, 2000, (4, 6, 5), dtype=np.uint16)


@pytest.fixture
def read(tmp_path, settings):
    """Discover the folder ``images`` beside a label for its first series and read every case."""

    def read(options=settings):
        found = discover(str(tmp_path / "images"), str(labels_beside(tmp_path)), options)
        return {case.name: (case, read_image(case, options)) for case in found.cases if case.kind == "dicom"}

    return read


def labels_beside(tmp_path):
    """One labelled NIfTI case: discovery wants a label."""
    volume = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(volume % 3, np.eye(4)), tmp_path / folder / "other.nii.gz")
    return tmp_path / "labels"


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_every_voxel_lies_where_the_standard_puts_it(save_series, read, orientation, order):
    save_series("images/s", VOLUME, orientation=orientation, order=order)
    _, volume = read()["s"]
    affine = np.array(volume.grid.affine)
    source = volume.grid.to_source(volume.pixels)
    normal = np.cross(orientation[:3], orientation[3:])
    for z, row, column in [(0, 0, 0), (3, 5, 4), (1, 2, 3)]:
        # PS3.3 C.7.6.2.1.1, then LPS to RAS.
        lps = (
            np.array([-20.0, -30.0, 5.0])
            + normal * 3.0 * z
            + np.array(orientation[:3]) * 0.5 * column
            + np.array(orientation[3:]) * 0.8 * row
        )
        np.testing.assert_allclose(affine @ [column, row, z, 1], [*(lps * [-1, -1, 1]), 1], atol=1e-4)
        assert source[column, row, z] == VOLUME[z, row, column]
    assert volume.spacing == pytest.approx((3.0, 0.8, 0.5), rel=1e-5)


def test_axial_series_are_shown_as_acquired(save_series, read):
    save_series("images/s", VOLUME)
    np.testing.assert_array_equal(read()["s"][1].pixels, VOLUME)


def test_label_from_a_flipping_converter_and_back(save_series, tmp_path, read, settings):
    save_series("images/s", VOLUME, orientation=OBLIQUE)
    case, volume = read()["s"]
    labels = (volume.grid.to_source(volume.pixels) % 3).astype(np.uint8)
    # dcm2niix stores rows bottom-up.
    flip = np.array([[0, 1], [1, -1], [2, 1]])
    nib.save(
        nib.Nifti1Image(labels, np.array(volume.grid.affine)).as_reoriented(flip), tmp_path / "labels" / "s_seg.nii.gz"
    )
    found = discover(str(tmp_path / "images"), str(tmp_path / "labels"), settings)
    case = next(case for case in found.cases if case.name == "s")
    assert case.label is not None
    np.testing.assert_array_equal(volume.grid.to_source(read_label(case, volume.grid, settings)), labels)
    write_label(read_label(case, volume.grid, settings), volume.grid, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_array_equal(written.affine, np.array(volume.grid.affine))
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)


def test_rescaling(save_series, read):
    def whole(index, item):
        item.RescaleSlope, item.RescaleIntercept = "1", "-1024"

    def broken(index, item):
        item.RescaleSlope, item.RescaleIntercept = "0.5", "1"

    save_series("images/whole", VOLUME, change=whole)
    save_series("images/broken", VOLUME, change=broken)
    found = read()
    assert found["whole"][1].pixels.dtype == np.int16
    np.testing.assert_array_equal(found["whole"][1].pixels, VOLUME.astype(np.int32) - 1024)
    assert found["broken"][1].pixels.dtype == np.float32
    np.testing.assert_allclose(found["broken"][1].pixels, VOLUME * 0.5 + 1)


def test_monochrome1_is_inverted(save_series, read):
    def change(index, item):
        item.PhotometricInterpretation = "MONOCHROME1"

    save_series("images/s", VOLUME, change=change)
    np.testing.assert_array_equal(read()["s"][1].pixels, VOLUME.max() + VOLUME.min() - VOLUME.astype(int))


def test_colour(save_series, read):
    volume = np.random.default_rng(4).integers(0, 255, (2, 6, 5, 3), dtype=np.uint8)
    save_series("images/s", volume)
    np.testing.assert_array_equal(read()["s"][1].pixels, volume)


def test_a_single_image_without_position(save_series, read):
    def change(index, item):
        del item.ImagePositionPatient, item.ImageOrientationPatient

    save_series("images/xray", VOLUME[:1], change=change)
    volume = read()["xray"][1]
    np.testing.assert_array_equal(volume.pixels, VOLUME[:1])
    assert volume.spacing == pytest.approx((1.0, 0.8, 0.5))


def test_run_length_compression_is_read(save_series, read):
    for path in save_series("images/s", VOLUME):
        item = pydicom.dcmread(path)
        item.compress(RLELossless)
        item.save_as(path)
    np.testing.assert_array_equal(read()["s"][1].pixels, VOLUME)


def test_a_missing_decoder_is_named(save_series, read):
    def change(index, item):
        item.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        item.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])

    save_series("images/s", VOLUME, change=change)
    with pytest.raises(UnreadableImageError, match=r"JPEG Lossless.*pip install") as caught:
        read()
    assert caught.value.reason == "missing_decoder"


def drop_position(index, item):
    if index == 1:
        del item.ImagePositionPatient


def turn(index, item):
    if index == 1:
        item.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def stretch(index, item):
    if index == 1:
        item.PixelSpacing = [0.8, 0.6]


def repeat(index, item):
    if index == 1:
        item.ImagePositionPatient = [-20, -30, 5]


def gap(index, item):
    if index == 3:
        item.ImagePositionPatient = [-20, -30, 5 + 3 * 4]


def stray(index, item):
    if index == 2:
        item.ImagePositionPatient = [-10, -30, 5 + 3 * 2]


def shrink(index, item):
    if index == 1:
        item.Rows, item.PixelData = 5, item.PixelData[: 5 * 5 * 2]


@pytest.mark.parametrize("change", [drop_position, turn, stretch, repeat, gap, stray, shrink])
def test_mixed_geometry_is_refused(save_series, read, change):
    save_series("images/s", VOLUME, change=change)
    with pytest.raises(GeometryError, match=r"^s: mixed geometry") as caught:
        read()
    assert caught.value.reason == "mixed_geometry"


def test_a_tilted_gantry_is_kept_as_a_shear(save_series, tmp_path, read):
    def change(index, item):
        item.ImagePositionPatient = [-20.0, -30.0 + index, 5.0 + 3 * index]

    save_series("images/s", VOLUME, change=change)
    grid = read()["s"][1].grid
    np.testing.assert_allclose(np.array(grid.affine)[:3, 2], [0, -1, 3])
    write_label(np.ones(grid.canonical_shape, np.uint8), grid, tmp_path / "o.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "o.nii.gz").affine, np.array(grid.affine))


def test_frames_and_sizes_are_refused_unread(save_series, read, settings):
    def frames(index, item):
        item.NumberOfFrames = 2
        item.PixelData = item.PixelData * 2

    save_series("images/s", VOLUME[:1], change=frames)
    with pytest.raises(GeometryError) as caught:
        read()
    assert caught.value.reason == "multi_frame"


def test_declared_size_is_checked_before_pixels(save_series, read, settings):
    def change(index, item):
        item.Rows = item.Columns = 60_000

    save_series("images/s", VOLUME, change=change)
    with pytest.raises(GeometryError) as caught:
        read()
    assert caught.value.reason == "too_large"


def test_a_short_slice_is_refused(save_series, read):
    def change(index, item):
        if index == 1:
            item.PixelData = item.PixelData[:20]

    save_series("images/s", VOLUME, change=change)
    with pytest.raises(UnreadableImageError, match=r"im_001\.dcm"):
        read()


def test_series_of_a_folder_are_cases_of_one_patient(save_series, tmp_path, settings):
    save_series("images/p", VOLUME, series="1.2.3.4", number=2)
    save_series("images/p", VOLUME + 1, series="1.2.3.5", number=7)
    save_series("images/q", VOLUME, patient="")
    found = discover(str(tmp_path / "images"), str(labels_beside(tmp_path)), settings)
    cases = {case.name: case for case in found.cases}
    assert set(cases) == {"p_series2", "p_series7", "q", "other"}
    assert cases["p_series2"].patient == cases["p_series7"].patient == "P7"
    assert cases["q"].patient == "q"
    assert cases["q"].modality == "MR"
    assert (cases["q"].body_part, cases["p_series2"].body_part) == ("unknown", "HEART")


def test_unreadable_files_are_set_aside_and_others_unharmed(save_series, tmp_path, settings):
    save_series("images/good", VOLUME)
    bad = tmp_path / "images" / "bad"
    bad.mkdir()
    (bad / "a.dcm").write_bytes(b"nothing of the sort")
    (bad / "b.dcm").write_bytes((tmp_path / "images/good/im_000.dcm").read_bytes()[:150])
    found = discover(str(tmp_path / "images"), str(labels_beside(tmp_path)), settings)
    assert {case.name for case in found.cases} == {"good", "other"}
    named = {entry.name: entry for entry in found.quarantined}
    assert named["bad/a.dcm"].reason == "unreadable"
    assert "a.dcm" in named["bad/a.dcm"].message
    assert "bad/b.dcm" in named or "bad/b.dcm" in found.ignored


def test_deflated_files_are_refused(save_series, tmp_path, settings):
    def change(index, item):
        item.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    save_series("images/s", VOLUME, change=change)
    found = discover(str(tmp_path / "images"), str(labels_beside(tmp_path)), settings)
    assert {entry.reason for entry in found.quarantined} == {"unsupported_transfer_syntax"}


def test_files_without_extension_are_found_by_their_magic(save_series, tmp_path, read):
    for path in save_series("images/s", VOLUME):
        path.rename(path.with_suffix(""))
    np.testing.assert_array_equal(read()["s"][1].pixels, VOLUME)


def test_names_and_dates_of_people_are_not_kept(save_series, read):
    save_series("images/s", VOLUME)
    case, volume = read()["s"]
    assert "Doe" not in repr(case) + json.dumps(volume.grid.to_json())


def test_digest_depends_on_bytes_alone(save_series, tmp_path, read):
    paths = save_series("images/s", VOLUME)
    before = source_digest(read()["s"][0])
    for index, path in enumerate(paths):
        path.rename(path.with_name(f"z{9 - index}.dcm"))
    assert source_digest(read()["s"][0]) == before
    item = pydicom.dcmread(tmp_path / "images/s/z9.dcm")
    item.RescaleSlope, item.RescaleIntercept = "2", "0"
    item.save_as(tmp_path / "images/s/z9.dcm")
    assert source_digest(read()["s"][0]) != before

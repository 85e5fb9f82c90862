"""Label maps: refused where they do not fit, written exactly where they came from."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rfss_core.errors import GeometryError, LabelError
from rfss_core.imaging import read_image, read_label, write_label
from rfss_core.settings import ImagingSettings

GEOMETRY = [
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
    "dim",
]


@pytest.fixture
def classes(pixels):
    labels = (pixels % 4).astype(np.uint8)
    labels[0] = 0
    return labels


@pytest.fixture
def read(save_nifti, nifti_case, pixels, settings):
    """Read a label array against the standard image."""

    def read(label, options=settings, **placed):
        case = nifti_case(save_nifti("image.nii.gz", pixels), save_nifti("label.nii.gz", label, **placed))
        grid = read_image(case, options).grid
        return grid.to_source(read_label(case, grid, options))

    return read


def refuse(read, label, error, reason, **placed):
    with pytest.raises(error) as caught:
        read(label, **placed)
    assert caught.value.reason == reason
    assert "label.nii.gz" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_integral_labels_of_any_type_are_read(read, classes, dtype):
    found = read(classes.astype(dtype))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, classes)


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan])
def test_values_that_are_no_classes_are_refused(read, classes, value):
    spoilt = classes.astype(np.float32)
    spoilt[1, 1, 1] = value
    refuse(read, spoilt, LabelError, "bad_label")


def test_another_shape_is_refused(read, classes):
    refuse(read, classes[:, :, :-1], GeometryError, "label_shape_mismatch")


@pytest.mark.parametrize("change", ["origin", "spacing", "turn", "mirror"])
def test_another_affine_is_refused(read, classes, change):
    affine = np.array([[-0.9, 0.1, 0.2, 40.0], [0.1, 1.1, -0.2, -30.0], [0.05, 0.2, 4.0, 12.0], [0, 0, 0, 1.0]])
    if change == "origin":
        affine[0, 3] += 0.01
    elif change == "spacing":
        affine[:3, 1] *= 1.01
    elif change == "mirror":
        affine[:3, 0] *= -1
    else:
        affine[:3, 0] += affine[:3, 1] * 0.01
    refuse(read, classes, GeometryError, "label_affine_mismatch", affine=affine)


def test_rounding_of_the_affine_is_tolerated(read, classes):
    affine = np.array([[-0.9, 0.1, 0.2, 40.0], [0.1, 1.1, -0.2, -30.0], [0.05, 0.2, 4.0, 12.0], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(read(classes, affine=affine * (1 + 1e-6)), classes)


@given(order=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([1, -1])] * 3))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_the_same_voxels_in_another_order_are_put_right(tmp_path, nifti_case, settings, order, signs):
    rng = np.random.default_rng(1)
    image = nib.Nifti1Image(rng.integers(0, 99, (3, 4, 5), dtype=np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    labels = rng.integers(0, 3, (3, 4, 5), dtype=np.uint8)
    stored = nib.Nifti1Image(labels, image.affine).as_reoriented(np.array(list(zip(order, signs, strict=True))))
    nib.save(image, tmp_path / "i.nii.gz")
    nib.save(stored, tmp_path / "l.nii.gz")
    case = nifti_case(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz")
    grid = read_image(case, settings).grid
    np.testing.assert_array_equal(grid.to_source(read_label(case, grid, settings)), labels)


def test_empty_labels_are_set_aside_or_kept(read, classes):
    empty = np.zeros_like(classes)
    refuse(read, empty, LabelError, "empty_label")
    assert not read(empty, ImagingSettings(empty_labels="keep")).any()


def test_a_picture_cannot_label_a_volume(save_nifti, nifti_case, grid_of, settings, pixels, tmp_path):
    path = save_nifti("image.nii.gz", pixels)
    with pytest.raises(LabelError, match=r"x\.png.*NIfTI"):
        read_label(nifti_case(path, tmp_path / "x.png"), grid_of(path), settings)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (2, 1), (0, 1), (0, 0), (4, 3)])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 4), (6, 7, 4, 1)])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_is_written_lies_exactly_on_the_source(tmp_path, nifti_case, settings, sform, qform, shape, version):
    rng = np.random.default_rng(2)
    affine = np.array([[0.7, 0, 0, 3.3], [0, -0.6, -1.0, 2.1], [0, -0.3, 2.0, 1.7], [0, 0, 0, 1]]) @ np.diag(
        [-1, 1, 1, 1]
    )
    image = version(rng.integers(0, 99, shape, dtype=np.int16), affine)
    image.header["descrip"] = b"Jane Doe, 1970-01-01"
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    source, out = tmp_path / "s.nii.gz", tmp_path / "new" / "o.nii.gz"
    nib.save(image, source)
    grid = read_image(nifti_case(source), settings).grid
    labels = rng.integers(0, 5, shape, dtype=np.uint8)
    write_label(grid.to_canonical(labels), grid, out)
    before, after = nib.load(source), nib.load(out)
    assert type(before) is type(after)
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), labels)
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in GEOMETRY:
        np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
    assert b"Jane" not in gzip.decompress(out.read_bytes())


def test_same_labels_same_bytes_and_nothing_left_behind(tmp_path, save_nifti, grid_of, pixels):
    grid = grid_of(save_nifti("image.nii.gz", pixels))
    labels = np.ones(grid.canonical_shape, np.uint8)
    folder = tmp_path / "out"
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label(labels, grid, folder / name)
    assert (folder / "a.nii.gz").read_bytes() == (folder / "b.nii.gz").read_bytes()
    write_label(labels, grid, folder / "c.nii")
    np.testing.assert_array_equal(nib.load(folder / "c.nii").get_fdata(), nib.load(folder / "a.nii.gz").get_fdata())
    assert sorted(path.name for path in folder.iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii"]


def test_labels_that_do_not_fit_are_not_written(tmp_path, save_nifti, grid_of, pixels):
    grid = grid_of(save_nifti("image.nii.gz", pixels))
    good = np.ones(grid.canonical_shape, np.uint8)
    with pytest.raises(GeometryError):
        write_label(good[1:], grid, tmp_path / "x.nii.gz")
    with pytest.raises(LabelError):
        write_label(good.astype(np.int16), grid, tmp_path / "x.nii.gz")
    with pytest.raises(LabelError):
        write_label(good, grid, tmp_path / "x.png")
    assert not (tmp_path / "x.nii.gz").exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small tmpfs")
    inside = tmp_path / "small"
    inside.mkdir()
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rfss_core.errors import StorageFullError\n"
        "from rfss_core.imaging.output import write_atomically\n"
        "folder = Path(sys.argv[1])\n"
        "write_atomically(folder / 'a.bin', bytes(4096))\n"
        "try:\n"
        "    write_atomically(folder / 'b.bin', bytes(2**20))\n"
        "except StorageFullError as error:\n"
        "    print(error, sorted(p.name for p in folder.iterdir()))\n"
    )
    script = f'mount -t tmpfs -o size=64k none "{inside}" || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", code, str(inside)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    assert "no space is left" in done.stdout, done.stderr
    assert "['a.bin']" in done.stdout

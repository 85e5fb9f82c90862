"""NIfTI files: what is kept, and every refusal."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rfss_core.errors import CaseError, GeometryError, PixelError, UnreadableImageError
from rfss_core.imaging import read_image
from rfss_core.imaging.nifti import read_nifti
from rfss_core.settings import ImagingSettings


def refuse(case, settings, error, reason):
    with pytest.raises(error) as caught:
        read_image(case, settings)
    assert caught.value.reason == reason
    return str(caught.value)


def edit_header(path, offset, data):
    """Overwrite header bytes of a .nii.gz."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_types_and_values_are_kept(save_nifti, dtype, name, settings):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    pixels = read_nifti(save_nifti(name, array), settings).pixels
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, array)


def test_scaled_and_double_files_become_float32(tmp_path, save_nifti, settings):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scaled.nii.gz")
    expected = nib.load(tmp_path / "scaled.nii.gz").get_fdata()
    pixels = read_nifti(tmp_path / "scaled.nii.gz", settings).pixels
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected)
    assert read_nifti(save_nifti("d.nii.gz", array.astype(np.float64)), settings).pixels.dtype == np.float32


def test_big_endian_and_nifti2(tmp_path, pixels, settings):
    nib.save(nib.Nifti2Image(pixels, np.eye(4)), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "two.nii.gz", settings).pixels, pixels)
    big = nib.Nifti1Image(pixels.astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    read = read_nifti(tmp_path / "big.nii", settings).pixels
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, pixels)


def test_affine_is_nibabels(save_nifti, pixels, settings):
    for sform, qform in ((1, 0), (2, 0)):
        path = save_nifti(f"{sform}{qform}.nii.gz", pixels, sform=sform, qform=qform)
        np.testing.assert_array_equal(read_nifti(path, settings).affine, nib.load(path).affine)


def test_units_become_millimetres(tmp_path, pixels, nifti_case, settings):
    image = nib.Nifti1Image(pixels, np.diag([500.0, 500.0, 2000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "micron.nii.gz")
    volume = read_image(nifti_case(tmp_path / "micron.nii.gz"), settings)
    assert volume.spacing == pytest.approx((2.0, 0.5, 0.5))


def test_trailing_singletons_are_no_fourth_dimension(save_nifti, nifti_case, settings):
    path = save_nifti("a.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1))
    volume = read_image(nifti_case(path), settings)
    assert volume.grid.shape == (2, 3, 4, 1)
    assert sorted(volume.pixels.shape) == [2, 3, 4]


def test_four_dimensions_are_refused(save_nifti, nifti_case, settings):
    path = save_nifti("a.nii.gz", np.zeros((2, 3, 4, 5), np.int16))
    assert "a.nii.gz" in refuse(nifti_case(path), settings, GeometryError, "not_3d")


@pytest.mark.parametrize("keep", [0, 10, 200, 351, 0.5, -1])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_truncated_files_are_refused(save_nifti, nifti_case, settings, pixels, keep, name):
    path = save_nifti(name, pixels)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refuse(nifti_case(path), settings, UnreadableImageError, "truncated")


def test_damaged_bytes_do_not_pass(save_nifti, nifti_case, settings, pixels):
    path = save_nifti("a.nii.gz", pixels)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # gzip's checksum
    path.write_bytes(data)
    refuse(nifti_case(path), settings, UnreadableImageError, "unreadable")


@given(position=st.floats(0, 1), value=st.integers(0, 255))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_is_a_typed_refusal_or_harmless(save_nifti, nifti_case, settings, pixels, position, value):
    path = save_nifti("fuzz.nii.gz", pixels)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[int(position * 347)] = value
    path.write_bytes(gzip.compress(bytes(raw), compresslevel=1))
    try:
        volume = read_image(nifti_case(path), settings)
    except CaseError as error:
        assert "fuzz.nii.gz" in str(error) or "case" in str(error)  # noqa: PT017
    else:
        assert volume.pixels.shape == volume.grid.canonical_shape


def test_a_declaration_of_a_trillion_voxels_is_refused_unread(save_nifti, nifti_case, settings, pixels):
    path = save_nifti("huge.nii.gz", pixels)
    edit_header(path, 42, struct.pack("<3h", 10_000, 10_000, 10_000))
    message = refuse(nifti_case(path), settings, GeometryError, "too_large")
    assert "1000000000000" in message
    assert "max_voxels" in message


def test_the_limit_is_the_settings(save_nifti, nifti_case, pixels):
    path = save_nifti("a.nii.gz", pixels)
    refuse(nifti_case(path), ImagingSettings(max_voxels=pixels.size - 1), GeometryError, "too_large")
    read_image(nifti_case(path), ImagingSettings(max_voxels=pixels.size))


def test_a_declaration_that_the_file_cannot_hold_is_refused_unread(save_nifti, nifti_case, settings, pixels):
    path = save_nifti("a.nii.gz", pixels)
    edit_header(path, 42, struct.pack("<3h", 1000, 1000, 1000))
    refuse(nifti_case(path), settings, UnreadableImageError, "truncated")


def test_a_gzip_bomb_does_not_fill_memory(tmp_path, save_nifti, pixels):
    path = save_nifti("bomb.nii", pixels)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(path.read_bytes())
        for _ in range(200):
            stream.write(bytes(2**20))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from rfss_core.imaging.nifti import read_nifti\n"
        "from rfss_core.settings import ImagingSettings\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    read_nifti(Path(sys.argv[1]), ImagingSettings())\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.nii.gz")], capture_output=True, text=True, check=True
    )
    name, grown = done.stdout.split()
    assert name == "UnreadableImageError"
    assert int(grown) < 64 * 1024  # Linux counts kibibytes


@pytest.mark.parametrize("sizes", [(0, 8, 5), (-9, 8, 5)])
def test_sizes_below_one_are_refused(save_nifti, nifti_case, settings, pixels, sizes):
    path = save_nifti("a.nii.gz", pixels)
    edit_header(path, 42, struct.pack("<3h", *sizes))
    refuse(nifti_case(path), settings, GeometryError, "bad_shape")


@pytest.mark.parametrize("spacing", [0.0, float("nan"), -1.0])
def test_broken_spacing_is_refused(tmp_path, nifti_case, settings, pixels, spacing):
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(pixels, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(np.eye(4), 1)
    nib.save(image, path)
    edit_header(path, 80, struct.pack("<f", spacing))
    refuse(nifti_case(path), settings, GeometryError, "bad_spacing")


def test_zero_pixdim_with_an_sform_is_fine(save_nifti, nifti_case, settings, pixels):
    path = save_nifti("a.nii.gz", pixels)
    edit_header(path, 76, struct.pack("<4f", 0, 0, 0, 0))
    assert read_image(nifti_case(path), settings).spacing[0] > 3.9


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_colours_and_complex_numbers_are_refused(tmp_path, nifti_case, settings, dtype):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), dtype), np.eye(4)), tmp_path / "a.nii.gz")
    refuse(nifti_case(tmp_path / "a.nii.gz"), settings, UnreadableImageError, "unsupported_dtype")


@pytest.mark.parametrize("data", [b"", b"not an image" * 100, b"\x1f\x8b" + bytes(500)])
def test_files_that_are_no_nifti_are_refused(tmp_path, nifti_case, settings, data):
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(UnreadableImageError, match=r"a\.nii\.gz"):
        read_image(nifti_case(tmp_path / "a.nii.gz"), settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused_or_filled(save_nifti, nifti_case, settings, pixels, value):
    spoilt = pixels.astype(np.float32)
    spoilt[1, 2, 3] = value
    path = save_nifti("a.nii.gz", spoilt)
    refuse(nifti_case(path), settings, PixelError, "non_finite")
    filled = read_image(nifti_case(path), ImagingSettings(non_finite="fill"))
    assert np.isfinite(filled.pixels).all()
    assert filled.grid.to_source(filled.pixels)[1, 2, 3] == spoilt[np.isfinite(spoilt)].min()


def test_all_nan_cannot_be_filled(save_nifti, nifti_case):
    path = save_nifti("a.nii.gz", np.full((3, 4, 5), np.nan, np.float32))
    refuse(nifti_case(path), ImagingSettings(non_finite="fill"), PixelError, "non_finite")


def test_constant_images_are_refused(save_nifti, nifti_case, settings):
    path = save_nifti("a.nii.gz", np.full((3, 4, 5), 7, np.int16))
    assert "7" in refuse(nifti_case(path), settings, PixelError, "constant_image")

"""Images that are written for viewers: on the source's grid, with the source's values."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from rfss_core.errors import GeometryError
from rfss_core.imaging import CaseSource, read_image, read_label, write_image, write_label
from rfss_core.settings import ImagingSettings

SETTINGS = ImagingSettings()
OBLIQUE = np.array([[-1.4, 0.3, 0, 20], [0.3, 1.4, 0.1, -30], [0, -0.2, 8, 5], [0, 0, 0, 1]])


def source_of(path: Path, kind: str) -> CaseSource:
    return CaseSource("c", "c", "p", "unknown", kind, path, path)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32])
def test_nifti_comes_back_with_its_values_and_geometry(tmp_path: Path, dtype: type) -> None:
    values = np.random.default_rng(0).integers(0, 120, (7, 5, 3)).astype(dtype)
    image = nib.Nifti1Image(values, OBLIQUE)
    image.set_sform(OBLIQUE, 1)
    nib.save(image, tmp_path / "in.nii.gz")
    volume = read_image(source_of(tmp_path / "in.nii.gz", "nifti"), SETTINGS)
    for name in ("a", "b"):
        write_image(volume.pixels, volume.grid, tmp_path / f"{name}.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    found, source = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "in.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), values)
    for field in ("pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(found.header[field], source.header[field])
    with pytest.raises(GeometryError):
        write_image(volume.pixels[:-1], volume.grid, tmp_path / "c.nii.gz")


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_pictures_come_back_and_their_labels_have_a_palette(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "in.png")
    volume = read_image(source_of(tmp_path / "in.png", "raster"), SETTINGS)
    write_image(volume.pixels, volume.grid, tmp_path / "out.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), values)
    labels = np.zeros((1, 6, 9), np.uint8)
    labels[0, 2:4] = 2
    write_label(labels, volume.grid, tmp_path / "label.png", {0: (0, 0, 0), 2: (10, 200, 30)})
    drawn = Image.open(tmp_path / "label.png")
    assert (drawn.mode, drawn.convert("RGB").getpixel((0, 2))) == ("P", (10, 200, 30))
    np.testing.assert_array_equal(
        read_label(source_of(tmp_path / "label.png", "raster"), volume.grid, SETTINGS), labels
    )

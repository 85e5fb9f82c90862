"""Real scans: an expert's label, read and written, is the expert's label."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from rfss_core.imaging import discover, estimate_window, normalise, read_image, read_label, write_label

COHORTS = {"acdc": (60, 30), "hippocampus": (176, 176), "prostate/us": (27, 27), "fetal-head": (162, 162)}
CODES = [
    "dim",
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
]


@pytest.mark.parametrize("cohort", COHORTS)
def test_expert_labels_come_back_voxel_for_voxel(shared_data, tmp_path, settings, cohort):
    folder = shared_data / cohort
    found = discover(str(folder / "images"), str(folder / "labels"), settings)
    assert not found.quarantined
    assert not found.ignored
    assert (len(found.cases), len({case.patient for case in found.cases})) == COHORTS[cohort]
    for case in found.cases[:: max(1, len(found.cases) // 12)]:
        volume = read_image(case, settings)
        labels = read_label(case, volume.grid, settings)
        assert labels.shape == volume.pixels.shape[:3]
        scaled = normalise(volume.pixels, estimate_window(volume.pixels, settings))
        assert 0 < scaled.mean() < 1
        path = tmp_path / f"{case.name}{volume.grid.suffix}"
        write_label(labels, volume.grid, path)
        if case.kind == "raster":
            np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(case.label)))
            continue
        written, expert, source = nib.load(path), nib.load(case.label), nib.load(case.image)
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expert.dataobj))
        np.testing.assert_array_equal(written.affine, source.affine)
        for field in CODES:
            np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)

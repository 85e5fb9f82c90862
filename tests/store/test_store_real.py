"""Real scans: what was read from the file is what the workspace gives back, and the label map finds home."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rfss_core.imaging import discover, estimate_window, normalise, read_image, read_label, source_digest, write_label
from rfss_core.settings import ImagingSettings
from rfss_core.store import Workspace


@pytest.mark.parametrize("cohort", ["hippocampus", "acdc", "fetal-head"])
def test_real_cases_survive_the_workspace(shared_data: Path, tmp_path: Path, cohort: str) -> None:
    settings = ImagingSettings()
    found = discover(str(shared_data / cohort / "images"), str(shared_data / cohort / "labels"), settings)
    workspace = Workspace.open(tmp_path / "workspace")
    cases = [case for case in found.cases if case.label is not None][:3]
    assert cases
    for case in cases:
        volume = read_image(case, settings)
        label = read_label(case, volume.grid, settings)
        window = estimate_window(volume.pixels, settings)
        row = workspace.write_case(case, volume, window, label, source_digest(case))
        stored = workspace.case(row.case_id)
        np.testing.assert_array_equal(stored.read_slices(), normalise(volume.pixels, window))
        np.testing.assert_array_equal(stored.read_labels(), label)
        target = tmp_path / f"{case.case_id}{row.suffix}"
        write_label(stored.read_labels(), stored.grid, target)
        if row.suffix == ".nii.gz":
            assert case.label is not None
            one, other = nib.load(target), nib.load(case.label)
            assert one.shape == other.shape
            np.testing.assert_array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))
    manifest = workspace.write_manifest(found.quarantined)
    assert manifest.cases["case_id"].tolist() == sorted(case.case_id for case in cases)
    assert manifest.cases["labelled"].all()

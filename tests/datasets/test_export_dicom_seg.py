"""DICOM-SEG: on the series' own slices, whatever their order and direction."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from exports import CLASSES, case_of, file_source, label_map, set_of, write_series

from rfss_core.datasets.exporters import EXPORTERS, ExportCase, ExportReport, export_cases
from rfss_core.errors import InputError
from rfss_core.imaging import CaseSource
from rfss_core.settings import ExportSettings
from rfss_core.store import Workspace

OBLIQUE = (0.9848077530122081, 0.17364817766693033, 0.0, 0.0, 0.0, -1.0)
VOLUME = np.random.default_rng(3).integers(0, 2000, (4, 6, 5))


def series(tmp_path: Path, name: str = "s", **changes: object) -> CaseSource:
    return CaseSource(name, name, "P7", "MR", "dicom", write_series(tmp_path / name, VOLUME, **changes), None)


def export(cases: list[ExportCase], out: Path, **changes: object) -> ExportReport:
    chosen = ExportSettings(format="dicom-seg", **changes)
    return export_cases(set_of(cases), EXPORTERS["dicom-seg"](chosen), out, chosen)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("order", [None, (2, 0, 3, 1)])
def test_every_voxel_lies_on_its_own_slice(tmp_path: Path, orientation: tuple, order: tuple | None) -> None:
    source = series(tmp_path, orientation=orientation, order=order)
    case = case_of(Workspace.open(tmp_path / "w"), source)
    report = export([case], tmp_path / "out")
    found = hd.seg.segread(report.folder / "s.dcm")
    headers = {str(header.SOPInstanceUID): header for header in map(pydicom.dcmread, source.image)}
    first = next(iter(headers.values()))
    assert found.StudyInstanceUID == first.StudyInstanceUID
    assert found.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert (found.PatientID, str(found.PatientName), found.Modality) == ("P7", "Doe^Jane", "SEG")
    # By highdicom's own lookup of frames: the label of each source instance, put where that instance lies.
    frames = found.get_pixels_by_source_instance(list(headers), combine_segments=True)
    expected = case.grid.to_source(label_map(case.grid.canonical_shape, 0))
    renumbered = np.select([expected == value for value in CLASSES], [1, 2, 3])
    to_voxel = np.linalg.inv(np.array(case.grid.affine))
    for frame, header in zip(frames, headers.values(), strict=True):
        world = np.array([*header.ImagePositionPatient, 1]) * [-1, -1, 1, 1]
        z = round(float((to_voxel @ world)[2]))
        assert np.array_equal(frame, renumbered[:, :, z].T)
    for item in found.PerFrameFunctionalGroupsSequence:
        [reference] = item.DerivationImageSequence[0].SourceImageSequence
        position = item.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(position, headers[reference.ReferencedSOPInstanceUID].ImagePositionPatient, atol=1e-6)
    volume = found.get_volume(combine_segments=True)
    assert volume.spatial_shape[0] <= len(VOLUME)


def test_segments_say_what_they_are(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    case = case_of(workspace, series(tmp_path), values=(0, 1))
    expert = case_of(workspace, series(tmp_path, "t"), expert=True)
    own = {"Myo": ("123456", "99HOSP", "Wall")}
    report = export([case, expert], tmp_path / "out", concepts=own)
    found = hd.seg.segread(report.folder / "s.dcm")
    assert list(found.segment_numbers) == [1, 2, 3]
    described = [found.get_segment_description(number) for number in found.segment_numbers]
    assert [each.segment_label for each in described] == list(CLASSES.values())
    kinds = [(each.segmented_property_type.value, each.segmented_property_type.scheme_designator) for each in described]
    assert kinds == [("53085002", "SCT"), ("123456", "99HOSP"), ("87878005", "SCT")]
    assert {each.algorithm_type.value for each in described} == {"AUTOMATIC"}
    # Frames without a class are not stored; the class is declared all the same.
    assert {int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            for item in found.PerFrameFunctionalGroupsSequence} == {1}  # fmt: skip
    manual = hd.seg.segread(report.folder / "t.dcm").get_segment_description(1)
    assert manual.algorithm_type.value == "MANUAL"
    assert report.manifest["plan"]["label_map"] == {"1": 1, "4": 2, "9": 3}
    again = export([case, expert], tmp_path / "other", concepts=own)
    assert hd.seg.segread(again.folder / "s.dcm").SOPInstanceUID == found.SOPInstanceUID


def test_an_empty_pseudo_label_is_an_object_without_a_voxel(tmp_path: Path) -> None:
    case = case_of(Workspace.open(tmp_path / "w"), series(tmp_path), values=(0,))
    report = export([case], tmp_path / "out")
    assert not pydicom.dcmread(report.folder / "s.dcm").pixel_array.any()


def test_what_has_no_series_is_left_out_with_its_reason(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "n.nii.gz")
    nifti = case_of(workspace, file_source(tmp_path / "n.nii.gz"))
    with pytest.raises(InputError, match=r"no case .* comes from a DICOM series \(found: nifti\)"):
        export([nifti], tmp_path / "none")
    whole = case_of(workspace, series(tmp_path))
    lost = case_of(workspace, series(tmp_path, "lost"))
    nameless = case_of(workspace, series(tmp_path, "nameless", StudyInstanceUID=None))
    for path in (tmp_path / "lost").iterdir():
        path.unlink()
    report = export([nifti, whole, lost, nameless], tmp_path / "out")
    assert [each["case"] for each in report.manifest["cases"]] == ["s"]
    assert {entry.name: entry.reason for entry in report.left_out} == {
        "n": "not_dicom", "lost": "no_source", "nameless": "incomplete_dicom",
    }  # fmt: skip
    assert report.manifest["left_out"][0]["message"]
    with pytest.raises(InputError, match=r"no case can be exported .* no StudyInstanceUID"):
        export([nameless], tmp_path / "third")
    assert not (tmp_path / "third").exists()
    assert not list(tmp_path.glob(".third*"))
    with pytest.raises(InputError, match="names class 'Liver'"):
        export([whole], tmp_path / "fourth", concepts={"Liver": ("1", "99X", "y")})

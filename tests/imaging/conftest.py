"""Builders of small real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from rfss_core.imaging import CaseSource, SourceGrid, read_image
from rfss_core.settings import ImagingSettings

AFFINE = np.array([[-0.9, 0.1, 0.2, 40.0], [0.1, 1.1, -0.2, -30.0], [0.05, 0.2, 4.0, 12.0], [0, 0, 0, 1.0]])
"""Oblique and sheared, with one coarse axis."""


@pytest.fixture
def settings() -> ImagingSettings:
    return ImagingSettings()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, (9, 8, 5), dtype=np.int16)


@pytest.fixture
def save_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write an array as NIfTI under ``tmp_path``."""

    def save(name: str, array: np.ndarray, affine: np.ndarray = AFFINE, sform: int = 1, qform: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(array, affine)
        image.set_sform(affine, sform)
        image.set_qform(affine, qform)
        nib.save(image, path)
        return path

    return save


@pytest.fixture
def nifti_case() -> Callable[..., CaseSource]:
    """Wrap files as a case without discovery."""

    def case(image: Path, label: Path | None = None) -> CaseSource:
        return CaseSource("case", "case", "patient", "unknown", "nifti", image, label)

    return case


@pytest.fixture
def grid_of(nifti_case: Callable[..., CaseSource], settings: ImagingSettings) -> Callable[[Path], SourceGrid]:
    return lambda path: read_image(nifti_case(path), settings).grid


@pytest.fixture
def save_series(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write an array [slice, row, column] as a DICOM series; ``change`` may spoil a slice before it is written."""

    def save(
        folder: str,
        volume: np.ndarray,
        *,
        orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        spacing: tuple[float, float, float] = (3.0, 0.8, 0.5),
        origin: tuple[float, float, float] = (-20.0, -30.0, 5.0),
        series: str | None = None,
        number: int = 1,
        patient: str = "P7",
        change: Callable[[int, pydicom.Dataset], None] | None = None,
        order: list[int] | None = None,
    ) -> list[Path]:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        normal = np.cross(orientation[:3], orientation[3:])
        uid = series or generate_uid()
        paths = []
        for place, index in enumerate(order or range(len(volume))):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = MRImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            item = pydicom.Dataset()
            item.file_meta = meta
            item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
            item.SeriesInstanceUID, item.SeriesNumber, item.Modality = uid, number, "MR"
            item.BodyPartExamined = "HEART" if patient else ""
            item.PatientID, item.PatientName = patient, "Doe^Jane"
            item.Rows, item.Columns = volume.shape[1:3]
            item.PixelSpacing = [spacing[1], spacing[2]]
            item.ImageOrientationPatient = [float(value) for value in orientation]
            item.ImagePositionPatient = [float(v) for v in np.array(origin) + normal * spacing[0] * index]
            item.SamplesPerPixel = volume.shape[3] if volume.ndim == 4 else 1
            item.PhotometricInterpretation = "RGB" if volume.ndim == 4 else "MONOCHROME2"
            if volume.ndim == 4:
                item.PlanarConfiguration = 0
            bits = volume.dtype.itemsize * 8
            item.BitsAllocated, item.BitsStored, item.HighBit = bits, bits, bits - 1
            item.PixelRepresentation = int(volume.dtype.kind == "i")
            item.PixelData = volume[index].tobytes()
            if change is not None:
                change(index, item)
            path = target / f"{series or 'im'}_{place:03d}.dcm"
            pydicom.dcmwrite(path, item, enforce_file_format=True)
            paths.append(path)
        return paths

    return save

"""Sets to export, made of small files with known voxels: oblique and flipped NIfTI, DICOM series, pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from rfss_core.datasets import DatasetEntry
from rfss_core.datasets.exporters import ExportCase, ExportSet
from rfss_core.digest import digest_array
from rfss_core.errors import UnreadableImageError
from rfss_core.imaging import CaseSource, IntensityWindow, read_image
from rfss_core.settings import ImagingSettings
from rfss_core.store import Workspace

CLASSES = {1: "RV", 4: "Myo", 9: "left ventricle"}
"""Values with gaps, as a source may have them."""


def label_map(shape: tuple[int, ...], seed: int, values: tuple[int, ...] = (0, 1, 4, 9)) -> np.ndarray:
    """Return a random label map [Z, H, W] in which no two axes look alike."""
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), shape)


def case_of(
    workspace: Workspace,
    source: CaseSource,
    *,
    seed: int = 0,
    values: tuple[int, ...] = (0, 1, 4, 9),
    expert: bool = False,
    part: str = "train",
    predicted: float | None = 0.75,
) -> ExportCase:
    """Ingest a source and return it as a case with random labels."""
    volume = read_image(source, ImagingSettings())
    workspace.write_case(source, volume, IntensityWindow(0, 1), None, "d" * 64)
    labels = label_map(volume.grid.canonical_shape, seed, values)
    entry = DatasetEntry(
        case=source.case_id,
        name=source.name,
        patient=source.patient,
        label_path=f"{source.name}{volume.grid.suffix}",
        sha256=digest_array(labels),
        source_digest="d" * 64,
        decision="accept",
        predicted_dice=predicted,
        lower=None,
        slices=labels.shape[0],
    )
    return ExportCase(
        id=source.case_id,
        name=source.name,
        patient=source.patient,
        label_source="expert" if expert else "pseudo-label",
        part=part,
        label_digest=digest_array(labels),
        stored=workspace.case(source.case_id),
        read_labels=partial(label_map, labels.shape, seed, values),
        find_source=partial(_found, source),
        modality=source.modality,
        weight=1.0 if expert or predicted is None else predicted,
        entry=None if expert else entry,
    )


def set_of(cases: list[ExportCase], classes: dict[int, str] = CLASSES, ignore: int | None = None) -> ExportSet:
    """Return the cases as a set."""
    return ExportSet("hearts", "a" * 64, classes, tuple(sorted(cases, key=lambda case: case.id)), ignore, {"k": 3})


def file_source(path: Path, kind: str = "nifti", patient: str = "p1") -> CaseSource:
    """Wrap one file as a case."""
    name = path.name.split(".")[0]
    return CaseSource(name, name, patient, "unknown", kind, path, None)


def _found(source: CaseSource) -> CaseSource:
    files = source.image if isinstance(source.image, tuple) else (source.image,)
    if not all(path.exists() for path in files):
        raise UnreadableImageError(f"{source.name}: its files are gone", reason="no_source")
    return source


def write_series(
    folder: Path,
    volume: np.ndarray,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    order: tuple[int, ...] | None = None,
    **changes: object,
) -> tuple[Path, ...]:
    """Write an array [slice, row, column] as an MR series of one study, file names in another order than positions."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    paths = []
    for place, index in enumerate(order or range(len(volume))):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        item = pydicom.Dataset()
        item.file_meta = meta
        item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, frame
        item.SeriesNumber, item.InstanceNumber, item.Modality = 4, index + 1, "MR"
        item.PatientID, item.PatientName = "P7", "Doe^Jane"
        item.Rows, item.Columns = volume.shape[1:]
        item.PixelSpacing = [0.8, 0.5]
        item.SliceThickness = 3.0
        item.ImageOrientationPatient = [float(value) for value in orientation]
        item.ImagePositionPatient = [float(value) for value in np.array((-20.0, -30.0, 5.0)) + normal * 3.0 * index]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
        item.PixelData = volume[index].astype(np.uint16).tobytes()
        for keyword, value in changes.items():
            if value is None:
                delattr(item, keyword)
            else:
                setattr(item, keyword, value)
        paths.append(folder / f"im{place:03d}.dcm")
        pydicom.dcmwrite(paths[-1], item, enforce_file_format=True)
    return tuple(paths)

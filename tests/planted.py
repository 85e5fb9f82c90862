"""A cohort whose every name is planted: folders, files, DICOM elements, header texts. And a search for them."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
from cohorts import save
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PLANTED = ("mustermann", "erika", "7719041")
"""In lower case: searches are blind to case."""
SIDE = 32


def write_planted(folder: Path, labelled: int = 4, raw: int = 2) -> Path:
    """Write labelled and unlabelled volumes, a DICOM series, a picture, and files with every kind of trouble."""
    for number in range(labelled + raw):
        image, label = _scene(number)
        name = f"sub-Mustermann{number:02d}/anat/Erika^Mustermann_{number}.nii.gz"
        save(folder / "images" / name, image)
        _plant_header(folder / "images" / name)
        if number < labelled:
            save(folder / "labels" / name, label)
    _write_series(folder / "images" / "MUSTERMANN^ERIKA")
    picture = Image.fromarray(_scene(50)[0][..., 0].astype(np.uint8))
    picture.save(folder / "images" / "Mustermann_Erika.png")
    # What is set aside, each for a reason of its own.
    broken = folder / "images" / "sub-MustermannErika_torn.nii.gz"
    save(broken, _scene(60)[0])
    broken.write_bytes(broken.read_bytes()[:700])
    (folder / "images" / "Mustermann_broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"MUSTERMANN^ERIKA" * 4)
    (folder / "images" / "Erika.tif").write_bytes(b"II*\0" + b"Mustermann" * 30)
    for name in ("images/Mustermann_twice.png", "images/Mustermann_twice.jpg", "labels/Erika_alone.png"):
        picture.save(folder / name)
    save(folder / "images" / "sub-Mustermann70.nii.gz", _scene(70)[0])
    save(folder / "labels" / "sub-Mustermann70.nii.gz", _scene(70)[1][:-3])
    (folder / "images" / ".Mustermann").write_text("hidden")
    (folder / "images" / "Erika.txt").write_text("no image")
    (folder / "images" / "sub-Mustermann_link.png").symlink_to(folder / "labels" / "Erika_alone.png")
    return folder


def search(*places: Path, skip: tuple[Path, ...] = (), words: tuple[str, ...] = PLANTED) -> list[str]:
    """Return where a word stands: in the path, the bytes, or what they hold packed, of any file below the places."""
    found = []
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_dir() or any(path.is_relative_to(one) for one in skip):
                continue
            texts = [str(path.relative_to(place.parent)).encode(), *_contents(path)]
            found += [f"{path}: {word}" for word in words if any(word.encode() in text.lower() for text in texts)]
    return found


def _contents(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    # Databases of Prefect and Windows-minded writers of names.
    yield data.replace(b"\0", b"")
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:4] == b"PAR1":
        yield pd.read_parquet(path).to_json(force_ascii=False).encode()
    elif data[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                yield str(database.execute(f'SELECT * FROM "{table}"').fetchall()).encode()
    elif data[:4] == b"\x89PNG":
        with Image.open(path) as picture:
            yield str(picture.info).encode()


def _scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    label = np.zeros((SIDE, SIDE, 2), np.uint8)
    for z in range(2):
        row, column = SIDE / 2 + rng.uniform(-3, 3, 2)
        label[np.hypot(rows - row, columns - column) < SIDE / 3.5, z] = 1
    return (rng.normal(80, 10, label.shape) + 100 * label).astype(np.int16), label


def _plant_header(path: Path) -> None:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    image.header["descrip"] = b"MUSTERMANN^ERIKA 7719041"
    image.header["db_name"] = b"Mustermann"
    image.header["aux_file"] = b"Erika"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient MUSTERMANN^ERIKA"))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)


def _write_series(folder: Path) -> None:
    folder.mkdir(parents=True)
    pixels = _scene(40)[0]
    series, study = generate_uid(), generate_uid()
    for z in range(pixels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["7719041", str(z)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.PatientID, slice_.PatientName = "7719041", "MUSTERMANN^ERIKA"
        slice_.PatientBirthDate, slice_.PatientSex = "19640812", "F"
        slice_.InstitutionName, slice_.ReferringPhysicianName = "Mustermann Clinic", "ERIKA"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.SeriesNumber = study, series, 3
        slice_.Modality, slice_.BodyPartExamined, slice_.SeriesDescription = "MR", "HEART", "Erika's heart"
        slice_.Rows, slice_.Columns = SIDE, SIDE
        slice_.PixelSpacing, slice_.ImageOrientationPatient = [1.0, 1.0], [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [0.0, 0.0, 5.0 * z]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = np.ascontiguousarray(pixels[..., z].T).tobytes()
        slice_.save_as(folder / f"ERIKA.{z}.dcm", enforce_file_format=True)

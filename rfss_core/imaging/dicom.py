"""DICOM series: an allow-list of elements, sorted by position, refused where the geometry is mixed."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from rfss_core.errors import CaseError, GeometryError, UnreadableImageError
from rfss_core.imaging.case import UNKNOWN
from rfss_core.imaging.grid import SourceGrid, affine_grid
from rfss_core.imaging.limits import check_voxels
from rfss_core.imaging.nifti import header_geometry
from rfss_core.settings import ImagingSettings

# Its remarks may quote elements; what is wrong with a file, our own errors say.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
_IDENTITY = ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "BodyPartExamined", "PatientID", "Rows"]
"""All that discovery ever reads of a file."""
_GEOMETRY = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "RescaleSlope",
    "RescaleIntercept",
]
_PIXELS = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
_NO_IMAGES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.3.10"}
"""Segmentations (labels, not images) and DICOMDIR (a list of files)."""
_BROKEN = (
    AttributeError,
    EOFError,
    InvalidDicomError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises on damaged files."""
_UNEVEN = 0.05
"""Positions may stray from even steps by this part of a step."""


@dataclass(frozen=True)
class DicomIdentity:
    """What tells the series of a folder apart; no other metadata are kept."""

    series: str
    number: int | None
    modality: str
    body_part: str
    patient: str


def is_dicom(path: Path) -> bool:
    """Tell whether a file carries DICOM's magic number (128 bytes preamble, ``DICM``)."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def identify(path: Path) -> DicomIdentity | None:
    """Return the series that a DICOM file belongs to, or None where it holds no image.

    Raises:
        UnreadableImageError: the file is damaged or not DICOM.
    """
    header = _read(path, _IDENTITY, pixels=False)
    try:
        if "Rows" not in header or str(header.get("SOPClassUID", "")) in _NO_IMAGES:
            return None
        number = header.get("SeriesNumber")
        return DicomIdentity(
            series=str(header.get("SeriesInstanceUID", "")),
            number=None if number is None else int(number),
            modality=str(header.get("Modality") or UNKNOWN),
            body_part=str(header.get("BodyPartExamined") or "").strip() or UNKNOWN,
            patient=str(header.get("PatientID") or "").strip(),
        )
    except _BROKEN as error:
        raise _damaged(path, error) from error


def read_series(name: str, files: tuple[Path, ...], settings: ImagingSettings) -> tuple[npt.NDArray[Any], SourceGrid]:
    """Read the files of one series as one volume.

    Slices are sorted by their position along the slice normal. Stored values become modality values by rescale slope
    and intercept (integers stay integers where both are whole); MONOCHROME1 is inverted. Images without a position
    (X-ray, ultrasound, secondary capture) must be single.

    Args:
        name: the case's name, for messages.
        files: the files, one slice each, in any order.
        settings: ``max_voxels`` and ``slice_axis`` are read.

    Returns:
        Array [columns, rows, slices] (and 3 colours) of shape ``grid.shape``, and its grid in RAS millimetres.

    Raises:
        UnreadableImageError: a file is damaged, or needs a decoder that is not installed (``missing_decoder``).
        GeometryError: ``mixed_geometry`` (orientation, spacing, size, gaps, repeated or missing positions),
            ``multi_frame``, or too many voxels.
    """
    slices = [_Slice(path, _read(path, _GEOMETRY, pixels=False)) for path in files]
    first = slices[0]
    for other in slices:
        if other.frames > 1:
            raise GeometryError(
                f"{name}: {other.path.name} holds {other.frames} frames; convert it to NIfTI (for example with "
                "dcm2niix) or to one frame a file",
                reason="multi_frame",
            )
        if other.shape != first.shape or other.samples != first.samples:
            raise _mixed(name, f"images of {first.shape} and {other.shape} (rows, columns)")
        if not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise _mixed(name, f"pixel spacings {first.spacing} and {other.spacing} mm")
    check_voxels(name, (*first.shape, len(slices)), settings)
    slices, affine = _place(name, slices)
    grid = _grid(name, (first.shape[1], first.shape[0], len(slices)), affine, settings)
    stack = np.stack(_modality_values(slices))
    if first.interpretation == "MONOCHROME1":
        wide = stack if stack.dtype.kind == "f" else stack.astype(np.int64)
        stack = (wide.max() + wide.min() - wide).astype(stack.dtype)
    return np.swapaxes(np.moveaxis(stack, 0, 2), 0, 1), grid


def ordered_files(name: str, files: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the files of a series in the order of the slices of :func:`read_series`.

    Raises:
        UnreadableImageError: a file is damaged.
        GeometryError: positions or orientations that do not belong together.
    """
    slices, _ = _place(name, [_Slice(path, _read(path, _GEOMETRY, pixels=False)) for path in files])
    return tuple(item.path for item in slices)


class _Slice:
    """The geometry of one file."""

    def __init__(self, path: Path, header: pydicom.Dataset) -> None:
        self.path = path
        try:
            self.shape = (int(header.Rows), int(header.Columns))
            self.frames = int(header.get("NumberOfFrames") or 1)
            self.samples = int(header.get("SamplesPerPixel") or 1)
            self.interpretation = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
            self.spacing = _numbers(header, "PixelSpacing") or _numbers(header, "ImagerPixelSpacing") or (1.0, 1.0)
            self.orientation = _numbers(header, "ImageOrientationPatient")
            self.position = _numbers(header, "ImagePositionPatient")
            slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
            self.slope = 1.0 if slope is None else float(slope)
            self.intercept = 0.0 if intercept is None else float(intercept)
        except _BROKEN as error:
            raise _damaged(path, error) from error
        if self.interpretation == "PALETTE COLOR":
            raise UnreadableImageError(
                f"{path.name}: palette colours are not supported; export it as grey or RGB", reason="unsupported_dtype"
            )

    def pixels(self) -> npt.NDArray[Any]:
        """Stored values, [rows, columns] or [rows, columns, 3]."""
        header = _read(self.path, _GEOMETRY + _PIXELS, pixels=True)
        try:
            with _quiet():
                pixels = pixel_array(header)
        except RuntimeError as error:
            if "missing dependencies" in str(error):
                syntax = header.file_meta.TransferSyntaxUID
                raise UnreadableImageError(
                    f"{self.path.name}: compressed as '{syntax.name}', for which no decoder is installed; "
                    "run `pip install 'pylibjpeg[all]'` or decompress the series",
                    reason="missing_decoder",
                ) from error
            raise _damaged(self.path, error) from error
        except _BROKEN as error:
            raise _damaged(self.path, error) from error
        if pixels.shape[:2] != self.shape:
            raise _damaged(self.path, ValueError(f"decoded to {pixels.shape}, declared {self.shape}"))
        return pixels


def _place(name: str, slices: list[_Slice]) -> tuple[list[_Slice], npt.NDArray[np.float64]]:
    """Sort slices along their normal; return them with the affine of (column, row, slice) to RAS mm."""
    first = slices[0]
    affine = np.eye(4)
    if first.orientation is None or first.position is None:
        if len(slices) > 1:
            raise _mixed(name, f"{len(slices)} images of which {first.path.name} has no position or orientation")
        affine[:3, :3] = np.diag([-first.spacing[1], -first.spacing[0], 1.0])
        return slices, affine
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    for other in slices:
        if other.orientation is None or other.position is None:
            raise _mixed(name, f"{other.path.name} has no position or orientation")
        if not np.allclose(other.orientation, first.orientation, atol=1e-3):
            raise _mixed(name, f"orientations {first.orientation} and {other.orientation}")
    normal = np.cross(along_row, along_column)
    lengths = [float(np.linalg.norm(vector)) for vector in (along_row, along_column, normal)]
    if not np.allclose(lengths, 1.0, atol=1e-2):
        raise GeometryError(f"{name}: direction cosines {first.orientation} are no right angle; export it again")
    ordered = sorted(slices, key=lambda item: float(np.dot(normal, np.array(item.position))))
    positions = np.array([item.position for item in ordered], dtype=np.float64)
    step = normal
    if len(ordered) > 1:
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        _check_even(name, positions, normal)
    affine[:3, 0] = along_row * first.spacing[1]
    affine[:3, 1] = along_column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    # DICOM's patient axes are LPS, NIfTI's RAS.
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_even(name: str, positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> None:
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() <= _UNEVEN * max(usual, 1e-3):
        raise _mixed(
            name, "several images at the same position (time points, echoes or phases); keep one image a position"
        )
    if np.abs(gaps - usual).max() > _UNEVEN * usual:
        raise _mixed(name, f"gaps between slices from {gaps.min():.4g} to {gaps.max():.4g} mm (a slice is missing)")
    even = np.linspace(positions[0], positions[-1], len(positions))
    if np.linalg.norm(positions - even, axis=1).max() > _UNEVEN * usual:
        raise _mixed(name, "positions that do not lie on one line")


def _grid(
    name: str, shape: tuple[int, int, int], affine: npt.NDArray[np.float64], settings: ImagingSettings
) -> SourceGrid:
    header = Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units(xyz="mm")
    header.set_sform(affine, code=1)
    try:
        header.set_qform(affine, code=1, strip_shears=False)
    except HeaderDataError:
        # A tilted gantry shears the grid; only an sform can say so.
        header["qform_code"] = 0
    placed = np.asarray(header.get_best_affine(), dtype=np.float64)
    return affine_grid(name, "dicom", shape, placed, header_geometry(header), settings.slice_axis)


def _modality_values(slices: list[_Slice]) -> list[npt.NDArray[Any]]:
    if all(item.slope == 1.0 and item.intercept == 0.0 for item in slices):
        return [item.pixels() for item in slices]
    if all(item.slope.is_integer() and item.intercept.is_integer() for item in slices):
        whole = [item.pixels() * np.int64(item.slope) + np.int64(item.intercept) for item in slices]
        low, high = min(int(array.min()) for array in whole), max(int(array.max()) for array in whole)
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return [array.astype(dtype) for array in whole]
    return [item.pixels().astype(np.float32) * np.float32(item.slope) + np.float32(item.intercept) for item in slices]


def _numbers(header: pydicom.Dataset, keyword: str) -> tuple[float, ...] | None:
    value = header.get(keyword)
    wanted = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3}.get(keyword, 2)
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        return None
    numbers = tuple(float(item) for item in value)
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        raise ValueError(f"{keyword} holds {numbers}")
    return numbers


def _read(path: Path, keywords: list[str], *, pixels: bool) -> pydicom.Dataset:
    try:
        with _quiet():
            meta = read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise UnreadableImageError(
                    f"{path.name}: deflated DICOM inflates without a bound and is refused; convert it to explicit VR",
                    reason="unsupported_transfer_syntax",
                )
            return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(keywords))
    except CaseError:
        raise
    except _BROKEN as error:
        raise _damaged(path, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's remarks on sloppy but readable values out of the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _mixed(name: str, what: str) -> GeometryError:
    return GeometryError(f"{name}: mixed geometry: {what}; split or mend the series", reason="mixed_geometry")


def _damaged(path: Path, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(f"{path.name}: unreadable DICOM ({error}); check or copy the file again")

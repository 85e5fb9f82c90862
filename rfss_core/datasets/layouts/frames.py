"""Frames of 4-D NIfTI files, written as the 3-D files that RFSS reads."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from rfss_core.errors import GeometryError, UnreadableImageError
from rfss_core.imaging.limits import check_voxels
from rfss_core.settings import ImagingSettings

_BROKEN = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)
_TEXT = ("descrip", "aux_file", "intent_name", "db_name")


@dataclass(frozen=True)
class Cine:
    """A 4-D file in memory."""

    header: Nifti1Header
    stored: npt.NDArray[Any]
    """[i, j, k, t] as stored: slope and intercept are not applied."""
    slope: float
    inter: float


def frame_count(path: Path) -> int:
    """Return how many frames a 4-D NIfTI file declares; only its header is read.

    Raises:
        UnreadableImageError: not a NIfTI file.
        GeometryError: not 4-D.
    """
    return int(_shape(path, _opened(path))[3])


def read_cine(path: Path) -> Cine:
    """Read a 4-D NIfTI file; the last one read is kept, since its frames are asked for one after the other.

    Raises:
        UnreadableImageError: not a NIfTI file, cut off or damaged.
        GeometryError: not 4-D, or too large.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(path: Path, _modified_ns: int) -> Cine:
    image = _opened(path)
    check_voxels(path.name, _shape(path, image), ImagingSettings())
    try:
        stored = np.asanyarray(image.dataobj.get_unscaled())
    except _BROKEN as error:
        raise UnreadableImageError(f"{path.name}: cannot be read ({error}); copy the file again") from error
    # nibabel blanks them in the header that it returns.
    return Cine(image.header, stored, float(image.dataobj.slope), float(image.dataobj.inter))


def frame_values(cine: Cine, frame: int) -> npt.NDArray[Any]:
    """Return one frame [i, j, k] with slope and intercept applied, as a mask's values are read."""
    stored = cine.stored[..., frame]
    return stored if (cine.slope, cine.inter) == (1.0, 0.0) else stored * cine.slope + cine.inter


def frame_file(cine: Cine, frame: int) -> bytes:
    """Return one frame as a gzipped 3-D NIfTI file.

    Geometry, type, slope and intercept are the 4-D file's; free text and extensions are left out. Same frame, same
    bytes.
    """
    return _file(cine.header, cine.stored[..., frame], cine.slope, cine.inter)


def volume_file(header: Nifti1Header, volume: npt.NDArray[np.uint8]) -> bytes:
    """Return a label map [i, j, k] as a gzipped NIfTI file with the geometry of another file's header."""
    plain = _bare(header)
    plain.set_data_dtype(np.uint8)
    return _file(plain, volume, 1.0, 0.0)


def read_header(path: Path) -> Nifti1Header:
    """Return a NIfTI file's header.

    Raises:
        UnreadableImageError: not a NIfTI file.
    """
    header: Nifti1Header = _opened(path).header
    return header


def _file(header: Nifti1Header, volume: npt.NDArray[Any], slope: float, inter: float) -> bytes:
    plain = _bare(header)
    plain.set_data_shape(volume.shape)
    plain["scl_slope"], plain["scl_inter"] = slope, inter
    plain["pixdim"][4:] = 0
    stream = BytesIO()
    plain.write_to(stream)
    stream.write(volume.astype(plain.get_data_dtype(), copy=False).tobytes(order="F"))
    return gzip.compress(stream.getvalue(), compresslevel=6, mtime=0)


def _bare(header: Nifti1Header) -> Nifti1Header:
    # Built from its bytes, a header comes without the extensions.
    plain = type(header)(header.binaryblock, endianness=header.endianness, check=False)
    plain["vox_offset"] = 0
    for name in _TEXT:
        plain[name] = b""
    return plain


def _opened(path: Path) -> Any:
    try:
        image = nib.load(path)
    except _BROKEN as error:
        raise UnreadableImageError(f"{path.name}: is no NIfTI file ({error}); copy the file again") from error
    if not isinstance(image.header, Nifti1Header):
        raise UnreadableImageError(f"{path.name}: is no NIfTI file; copy the file again")
    return image


def _shape(path: Path, image: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = image.shape
    if len(shape) != 4:
        raise GeometryError(f"{path.name}: is {len(shape)}-dimensional, not a cine series of 4", reason="not_3d")
    return shape

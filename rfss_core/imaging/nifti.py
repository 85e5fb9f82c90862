"""NIfTI-1 and NIfTI-2 files: headers checked first, then exactly the declared bytes, nothing more."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, IOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file

from rfss_core.errors import GeometryError, PixelError, UnreadableImageError
from rfss_core.imaging.grid import NiftiGeometry, Row, SourceGrid
from rfss_core.imaging.limits import check_voxels
from rfss_core.settings import ImagingSettings

_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_RATIO = 1100
"""Deflate cannot pack a byte into less than 1/1032 (zlib's technical notes)."""
_LONGEST_EXTENSION = 2**28
"""Bytes of header extensions that are skipped at most."""
_LONGEST_TAIL = 2**24
"""Bytes after the voxels that are tolerated at most (some writers pad)."""
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@dataclass(frozen=True)
class NiftiFile:
    """What a NIfTI file holds."""

    pixels: npt.NDArray[Any]
    """The voxels in the file's order and shape: the stored integers, or float32 where values are scaled."""
    affine: npt.NDArray[np.float64]
    geometry: NiftiGeometry


def read_nifti(path: Path, settings: ImagingSettings) -> NiftiFile:
    """Read a ``.nii`` or ``.nii.gz`` file.

    Memory is bounded by the header's own declaration, which is checked first: a file that inflates to more than it
    declares is refused. Free-text fields and extensions are not kept.

    Args:
        path: the file; gzip is told by its magic number, not by its name.
        settings: ``max_voxels`` is read.

    Raises:
        UnreadableImageError: not NIfTI (``unreadable``), cut off (``truncated``), or of a voxel type that is no grey
            value (``unsupported_dtype``).
        GeometryError: more than three dimensions (``not_3d``), sizes below 1 (``bad_shape``), too many voxels
            (``too_large``), or a broken affine.
    """
    try:
        with _opened(path) as stream:
            header = _read_header(path, stream)
            shape, dtype, offset = _declared(path, header, settings)
            _check_size(path, offset + math.prod(shape) * dtype.itemsize)
            pixels = array_from_file(shape, dtype, cast("IOBase", stream), offset, mmap=False)
            _drain(path, stream)
    except EOFError as error:
        raise _truncated(path) from error
    except zlib.error as error:
        raise UnreadableImageError(
            f"{path.name}: the compressed data are damaged ({error}); copy the file again"
        ) from error
    except OSError as error:
        if str(error).startswith("Expected "):
            raise _truncated(path) from error
        raise UnreadableImageError(f"{path.name}: cannot be read ({error}); check or copy the file again") from error
    native: npt.NDArray[Any] = pixels.astype(dtype.newbyteorder("="), copy=False)
    affine, geometry = _geometry(path, header)
    return NiftiFile(_scaled(path, native, header), affine, geometry)


def encode_nifti(array: npt.NDArray[Any], grid: SourceGrid, *, compress: bool = True) -> bytes:
    """Return the bytes of a NIfTI file on a source's grid.

    Geometry fields equal the source's bit for bit; text fields are blank; same voxels, same bytes.

    Args:
        array: label map or image of shape ``grid.shape``, of a number type that NIfTI and its viewers know; a last
            axis of 3 uint8 colours makes an RGB file.
        grid: a NIfTI or DICOM grid.
        compress: gzip (without a time stamp).

    Raises:
        GeometryError: the grid is a raster's.
    """
    stored = grid.nifti
    if stored is None:
        raise GeometryError("a raster's label map cannot be written as NIfTI; write .png or .tif")
    if array.shape == (*grid.shape, 3) and array.dtype == np.uint8:
        array = np.ascontiguousarray(array).view(_RGB)[..., 0]
    header = Nifti1Header() if stored.version == 1 else Nifti2Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["pixdim"] = stored.pixdim
    header["qform_code"], header["sform_code"] = stored.qform_code, stored.sform_code
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = stored.quatern
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = stored.qoffset
    header["srow_x"], header["srow_y"], header["srow_z"] = stored.srow
    header["xyzt_units"] = stored.xyzt_units
    header["scl_slope"], header["scl_inter"] = 1, 0
    plain = BytesIO()
    header.write_to(plain)
    plain.write(array.astype(array.dtype.newbyteorder("="), copy=False).tobytes(order="F"))
    if not compress:
        return plain.getvalue()
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)


def header_geometry(header: Nifti1Header) -> NiftiGeometry:
    """Return the geometry fields of a header; numbers that are not finite, allowed in unused fields, become 0."""

    def number(value: Any) -> float:
        plain = float(value)
        return plain if math.isfinite(plain) else 0.0

    def row(name: str) -> Row:
        first, second, third, fourth = (number(value) for value in header[name])
        return first, second, third, fourth

    p = [number(value) for value in header["pixdim"]]
    return NiftiGeometry(
        version=2 if isinstance(header, Nifti2Header) else 1,
        pixdim=(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]),
        qform_code=int(header["qform_code"]),
        sform_code=int(header["sform_code"]),
        quatern=(number(header["quatern_b"]), number(header["quatern_c"]), number(header["quatern_d"])),
        qoffset=(number(header["qoffset_x"]), number(header["qoffset_y"]), number(header["qoffset_z"])),
        srow=(row("srow_x"), row("srow_y"), row("srow_z")),
        xyzt_units=int(header["xyzt_units"]),
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=raw) as inflated:
                yield cast("BinaryIO", inflated)
        else:
            yield raw


def _read_header(path: Path, stream: BinaryIO) -> Nifti1Header:
    block = stream.read(_NIFTI2_BYTES)
    if len(block) < _NIFTI1_BYTES:
        raise EOFError
    if block[344:348] == b"ni1\0":
        raise UnreadableImageError(f"{path.name}: is half of a .hdr/.img pair; convert it to one .nii.gz file")
    # nibabel's own checks mend broken fields without a word; ours refuse them.
    if block[344:348] == b"n+1\0":
        header = Nifti1Header(block[:_NIFTI1_BYTES], check=False)
    elif block[4:12] == b"n+2\0\r\n\x1a\n":
        if len(block) < _NIFTI2_BYTES:
            raise EOFError
        header = Nifti2Header(block, check=False)
    else:
        raise UnreadableImageError(f"{path.name}: is not a NIfTI file; export the image again")
    return header


def _declared(
    path: Path, header: Nifti1Header, settings: ImagingSettings
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    dim = [int(size) for size in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise GeometryError(
            f"{path.name}: the header declares {dim[0]} dimensions; export it again", reason="bad_shape"
        )
    shape = tuple(dim[1 : dim[0] + 1])
    sides = " x ".join(str(size) for size in shape)
    if len(shape) < 2 or any(size > 1 for size in shape[3:]):
        raise GeometryError(
            f"{path.name}: is {len(shape)}-dimensional ({sides}); split it into 3-D volumes", reason="not_3d"
        )
    check_voxels(path.name, shape, settings)
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise UnreadableImageError(
            f"{path.name}: unknown NIfTI data type {int(header['datatype'])}; convert it to int16 or float32",
            reason="unsupported_dtype",
        ) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UnreadableImageError(
            f"{path.name}: voxels of type {dtype} are not grey values; convert it to int16 or float32",
            reason="unsupported_dtype",
        )
    first = 352 if isinstance(header, Nifti1Header) and not isinstance(header, Nifti2Header) else 544
    declared = float(header["vox_offset"])
    if declared == 0:
        declared = first
    if not first <= declared <= _LONGEST_EXTENSION:
        raise UnreadableImageError(f"{path.name}: voxels cannot begin at byte {declared:g}; export the image again")
    return shape, dtype, int(declared)


def _check_size(path: Path, needed: int) -> None:
    size = path.stat().st_size
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP_MAGIC
    if size * (_DEFLATE_RATIO if packed else 1) < needed:
        raise _truncated(path)


def _drain(path: Path, stream: BinaryIO) -> None:
    """Read what follows the voxels: only then does gzip compare its checksum."""
    tail = 0
    while block := stream.read(2**20):
        tail += len(block)
        if tail > _LONGEST_TAIL:
            raise UnreadableImageError(f"{path.name}: holds far more data than its header declares; export it again")


def _truncated(path: Path) -> UnreadableImageError:
    return UnreadableImageError(
        f"{path.name}: ends before its last voxel; copy or export the file again", reason="truncated"
    )


def _geometry(path: Path, header: Nifti1Header) -> tuple[npt.NDArray[np.float64], NiftiGeometry]:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise GeometryError(
            f"{path.name}: the header's qform is broken ({error}); mend it", reason="bad_spacing"
        ) from error
    return affine, header_geometry(header)


def _scaled(path: Path, stored: npt.NDArray[Any], header: Nifti1Header) -> npt.NDArray[Any]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise PixelError(f"{path.name}: broken intensity scaling ({error}); mend the header") from error
    if slope in (None, 1.0) and inter in (None, 0.0):
        # float64 would double the memory for digits that no scanner measures.
        return stored.astype(np.float32) if stored.dtype == np.float64 else stored
    scaled = stored.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(inter)
    return scaled

"""Volumes: a case's pixels in canonical orientation, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.digest import digest_file, digest_json
from rfss_core.errors import PixelError, UnreadableImageError
from rfss_core.imaging.case import CaseSource
from rfss_core.imaging.dicom import read_series
from rfss_core.imaging.grid import SourceGrid, affine_grid
from rfss_core.imaging.nifti import encode_nifti, read_nifti
from rfss_core.imaging.output import write_atomically
from rfss_core.imaging.raster import encode_raster, read_raster
from rfss_core.settings import ImagingSettings


@dataclass(frozen=True)
class Volume:
    """One case's pixels in canonical orientation."""

    pixels: npt.NDArray[Any]
    """[Z, H, W] or [Z, H, W, 3]; the source's integers, or float32."""
    grid: SourceGrid
    """The way back to the file."""
    spacing: tuple[float, float, float]
    """(z, y, x) in mm; 1.0 (pixels) where unknown."""


def read_image(source: CaseSource, settings: ImagingSettings) -> Volume:
    """Read a case's image.

    Args:
        source: the case.
        settings: ``slice_axis``, ``max_voxels`` and ``non_finite`` are read.

    Returns:
        The volume: integers as stored where the file scales them by nothing, else float32.

    Raises:
        UnreadableImageError: the file is damaged or no image.
        GeometryError: its shape or placement cannot be used.
        PixelError: NaN or infinite voxels (``non_finite``), or all the same (``constant_image``).
    """
    if source.kind == "dicom":
        pixels, grid = read_series(source.name, image_files(source), settings)
    elif source.kind == "nifti":
        path = image_files(source)[0]
        nifti = read_nifti(path, settings)
        pixels = nifti.pixels
        grid = affine_grid(path.name, "nifti", pixels.shape, nifti.affine, nifti.geometry, settings.slice_axis)
    else:
        pixels, grid = read_raster(image_files(source)[0], settings)
    pixels = _finite(source.name, grid.to_canonical(pixels), settings)
    if pixels.min() == pixels.max():
        raise PixelError(
            f"{source.name}: every voxel is {pixels.flat[0]:g}; export the image again or remove it",
            reason="constant_image",
        )
    return Volume(pixels, grid, grid.spacing)


def write_image(pixels: npt.NDArray[Any], grid: SourceGrid, path: Path) -> None:
    """Write an image on its source's own grid, for viewers: same shape, affine and codes as the source.

    Values stay as they are where the format has their type. NIfTI gets int16 for int8, int32 or float32 for wider
    integers; a PNG gets 8 bits, stretched over the image's own range, for anything but 8-bit values and 16-bit grey.

    Args:
        pixels: [Z, H, W] or [Z, H, W, 3] in canonical orientation, as the workspace stores them.
        grid: the grid of the source image.
        path: must end in ``grid.suffix``.

    Raises:
        GeometryError: the pixels have another shape than the grid.
        StorageFullError: no space is left.
        StoreError: the file cannot be written.
    """
    array = grid.to_source(pixels)
    if grid.suffix == ".nii.gz":
        data = encode_nifti(_for_nifti(array, len(grid.shape)), grid)
    else:
        data = encode_raster(_for_png(array) if grid.suffix == ".png" else array, grid.suffix)
    write_atomically(path, data)


def _for_nifti(array: npt.NDArray[Any], depth: int) -> npt.NDArray[Any]:
    if array.ndim > depth and array.dtype != np.uint8:
        # NIfTI has no wider colours that viewers know.
        array = array.mean(axis=-1, dtype=np.float32)
    if array.dtype in (np.int8, np.bool_):
        return array.astype(np.int16)
    if array.dtype in (np.uint32, np.int64, np.uint64):
        return array.astype(np.int32 if np.abs(array).max(initial=0) < 2**31 else np.float32)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _for_png(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype == np.uint8 or (array.dtype == np.uint16 and array.ndim == 2):
        return array
    low, high = float(array.min()), float(array.max())
    return np.rint((array.astype(np.float64) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def image_files(source: CaseSource) -> tuple[Path, ...]:
    """Return the files of a case's image, one or a DICOM series' many."""
    return source.image if isinstance(source.image, tuple) else (source.image,)


def source_digest(source: CaseSource) -> str:
    """Return the sha256 over the bytes of a case's image files and label.

    Names do not matter: a DICOM series whose files were renamed keeps its digest.

    Raises:
        UnreadableImageError: a file has vanished or may not be read.
    """
    try:
        return digest_json(
            {
                "image": sorted(digest_file(path) for path in image_files(source)),
                "label": None if source.label is None else digest_file(source.label),
            }
        )
    except OSError as error:
        raise UnreadableImageError(f"{source.name}: cannot be read ({error}); check the file's rights") from error


def _finite(name: str, pixels: npt.NDArray[Any], settings: ImagingSettings) -> npt.NDArray[Any]:
    if pixels.dtype.kind != "f":
        return pixels
    finite = np.isfinite(pixels)
    if finite.all():
        return pixels
    bad = int(finite.size - np.count_nonzero(finite))
    if settings.non_finite == "quarantine" or bad == pixels.size:
        raise PixelError(
            f"{name}: {bad} of {pixels.size} voxels are NaN or infinite; mend the image, "
            "or set imaging.non_finite to 'fill'",
            reason="non_finite",
        )
    return np.where(finite, pixels, pixels[finite].min())

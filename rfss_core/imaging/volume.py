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
from rfss_core.imaging.nifti import read_nifti
from rfss_core.imaging.raster import read_raster
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

"""Label maps: an expert's on the way in, pseudo-labels on the way out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from rfss_core.errors import GeometryError, LabelError
from rfss_core.imaging.case import CaseSource
from rfss_core.imaging.grid import SourceGrid, complete_affine, spatial_shape
from rfss_core.imaging.nifti import encode_nifti, read_nifti
from rfss_core.imaging.output import write_atomically
from rfss_core.imaging.raster import encode_raster, read_raster_label
from rfss_core.settings import ImagingSettings

_TOLERANCE = 1e-3
"""Affines agree when no step and no first voxel differs by more than this part of a voxel."""
_NIFTI_SUFFIXES = (".nii", ".nii.gz")


def read_label(
    source: CaseSource, grid: SourceGrid, settings: ImagingSettings, *, exact: bool = False
) -> npt.NDArray[np.uint8]:
    """Read an expert's label map, or one of :func:`write_label`, onto its image's canonical grid.

    The label must lie on the image's own voxels. One that stores the same voxels with axes swapped or flipped (as
    dcm2niix does for DICOM) is put in the image's order; nothing is ever resampled.

    Args:
        source: the case; its ``label`` must not be None.
        grid: the grid of the case's image.
        settings: ``empty_labels``, ``classes`` and ``max_voxels`` are read.
        exact: the values are classes as they stand, as :func:`write_label` writes them. An expert's picture whose only
            value besides 0 is 255 holds class 1, see :func:`rfss_core.imaging.raster.read_raster_label`.

    Returns:
        uint8 [Z, H, W]; 0 is background.

    Raises:
        GeometryError: ``label_shape_mismatch`` or ``label_affine_mismatch``.
        LabelError: values that are no classes (``bad_label``), or no foreground (``empty_label``).
        UnreadableImageError: the file is damaged.
    """
    if source.label is None:
        raise LabelError(f"{source.name}: has no label to read")
    path = source.label
    is_nifti = path.name.lower().endswith(_NIFTI_SUFFIXES)
    if is_nifti != (grid.kind != "raster"):
        wanted = "a PNG or TIFF" if is_nifti else "a NIfTI"
        raise LabelError(f"{path.name}: the label map of this image must be {wanted} file; convert it")
    array = _read_nifti_label(path, grid, settings) if is_nifti else _read_raster_label(path, grid, settings, exact)
    labels = grid.to_canonical(_as_classes(path, array))
    if settings.empty_labels == "quarantine" and not labels.any():
        raise LabelError(
            f"{path.name}: holds no foreground; label it, remove it, or set imaging.empty_labels to 'keep'",
            reason="empty_label",
        )
    return labels


def write_label(
    labels: npt.NDArray[np.uint8],
    grid: SourceGrid,
    path: Path,
    palette: Mapping[int, tuple[int, int, int]] | None = None,
) -> None:
    """Write a label map on its source's own grid: same shape, affine and codes, bit for bit.

    The file appears whole or not at all, and the same labels give the same bytes. Its free-text fields are blank.

    Args:
        labels: uint8 [Z, H, W] in canonical orientation.
        grid: the grid of the source image.
        path: must end in ``grid.suffix`` (``.nii`` is allowed for ``.nii.gz``, ``.tiff`` for ``.tif``).
        palette: colours of label values, for a PNG whose values are indices of a palette; other formats have none.

    Raises:
        GeometryError: the labels have another shape than the grid (``label_shape_mismatch``).
        LabelError: not uint8, or a path of another extension.
        StorageFullError: no space is left.
        StoreError: the file cannot be written.
    """
    if labels.dtype != np.uint8:
        raise LabelError(f"{path.name}: labels must be uint8, got {labels.dtype}; convert them")
    if labels.shape != grid.canonical_shape:
        raise GeometryError(
            f"{path.name}: labels of shape {labels.shape} are not on the source's grid {grid.canonical_shape}",
            reason="label_shape_mismatch",
        )
    name = path.name.lower()
    allowed = {".nii.gz": _NIFTI_SUFFIXES, ".png": (".png",), ".tif": (".tif", ".tiff")}[grid.suffix]
    if not name.endswith(allowed):
        raise LabelError(f"{path.name}: a label map on this grid must be named *{grid.suffix}")
    array = grid.to_source(labels)
    if grid.suffix == ".nii.gz":
        data = encode_nifti(array, grid, compress=name.endswith(".gz"))
    else:
        data = encode_raster(array, grid.suffix, palette)
    write_atomically(path, data)


def _read_raster_label(path: Path, grid: SourceGrid, settings: ImagingSettings, exact: bool) -> npt.NDArray[Any]:
    array = read_raster_label(path, settings, exact=exact)
    if array.shape != grid.shape:
        raise _other_shape(path, array.shape, grid)
    return array


def _read_nifti_label(path: Path, grid: SourceGrid, settings: ImagingSettings) -> npt.NDArray[Any]:
    nifti = read_nifti(path, settings)
    sizes = spatial_shape(nifti.pixels.shape, "nifti")
    affine = complete_affine(path.name, nifti.affine, sizes)
    target = np.array(grid.affine)
    volume = nifti.pixels.reshape(sizes)
    if sizes != grid.volume_shape or not _agree(affine, target, grid.volume_shape):
        turn = ornt_transform(io_orientation(affine), io_orientation(target))
        volume = apply_orientation(volume, turn)
        if volume.shape != grid.volume_shape:
            raise _other_shape(path, nifti.pixels.shape, grid)
        turned = affine @ inv_ornt_aff(turn, sizes)
        if not _agree(turned, target, grid.volume_shape):
            raise GeometryError(
                f"{path.name}: {_difference(turned, target)}; resample the label onto its image, "
                "or copy the image's affine if only the header is wrong",
                reason="label_affine_mismatch",
            )
    return volume.reshape(grid.shape)


def _agree(affine: npt.NDArray[np.float64], target: npt.NDArray[np.float64], sizes: tuple[int, int, int]) -> bool:
    steps = voxel_sizes(target)
    # An axis of one voxel has no second voxel to disagree about.
    columns = [axis for axis in range(3) if sizes[axis] > 1]
    drift = np.linalg.norm(affine[:3, columns] - target[:3, columns], axis=0)
    origin = float(np.linalg.norm(affine[:3, 3] - target[:3, 3]))
    return bool((drift <= _TOLERANCE * steps[columns]).all()) and origin <= _TOLERANCE * float(steps.min())


def _difference(affine: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> str:
    steps, wanted = voxel_sizes(affine), voxel_sizes(target)
    if not np.allclose(steps, wanted, rtol=_TOLERANCE):
        return f"its voxels are {_listed(steps)} mm, the image's {_listed(wanted)} mm"
    shift = float(np.linalg.norm(affine[:3, 3] - target[:3, 3]))
    if shift > _TOLERANCE * float(wanted.min()):
        return f"its first voxel lies {shift:.3g} mm from the image's"
    return "its axes are turned against the image's"


def _listed(values: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _other_shape(path: Path, shape: tuple[int, ...], grid: SourceGrid) -> GeometryError:
    return GeometryError(
        f"{path.name}: the label has shape {shape}, its image {grid.shape}; resample the label onto its image",
        reason="label_shape_mismatch",
    )


def _as_classes(path: Path, array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise LabelError(f"{path.name}: holds NaN or infinite label values; write class numbers 0 to 255")
        rounded = np.rint(array)
        # Scaled headers put integers a little off.
        if np.abs(array - rounded).max(initial=0) > 1e-3:
            raise LabelError(
                f"{path.name}: label values such as {array[array != rounded].flat[0]:g} are no class numbers; "
                "threshold probabilities and write integers"
            )
        array = rounded
    low, high = array.min(initial=0), array.max(initial=0)
    if low < 0 or high > 255:
        raise LabelError(f"{path.name}: label values go from {low:g} to {high:g}; renumber the classes to 0 to 255")
    return array.astype(np.uint8)

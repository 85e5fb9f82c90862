"""Source grids: the way from a file's voxel array to the canonical one, and exactly back."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from pydantic import BaseModel, ConfigDict

from rfss_core.errors import GeometryError
from rfss_core.imaging.case import Kind

Suffix = Literal[".nii.gz", ".png", ".tif"]
Row = tuple[float, float, float, float]
Affine = tuple[Row, Row, Row, Row]
SliceAxis = Literal["auto", 0, 1, 2]
Scalar = TypeVar("Scalar", bound=np.generic)

_COARSER = 1.01
"""A spacing must exceed the others by this factor to be clearly coarser."""
_IDENTITY: Affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in one spatial unit of NIfTI's ``xyzt_units``; 0 (unknown) counts as mm."""


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NiftiGeometry(_Exact):
    """The header fields that place a NIfTI's voxels, as stored, so that they can be written back bit for bit."""

    version: Literal[1, 2]
    pixdim: tuple[float, float, float, float, float, float, float, float]
    qform_code: int
    sform_code: int
    quatern: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    srow: tuple[Row, Row, Row]
    xyzt_units: int


class SourceGrid(_Exact):
    """The grid of a source file and its relation to canonical [Z, H, W].

    Canonical orientation is LPS with the slicing axis first. Axial slices: rows grow to posterior, columns to the
    patient's left. Coronal: rows to inferior, columns to left. Sagittal: rows to inferior, columns to posterior. Slices
    grow to superior, posterior or left. Rasters keep rows and columns as in the file.
    """

    kind: Kind
    shape: tuple[int, ...]
    """Shape of the array in the file, singleton axes included: (i, j, k) as nibabel has it, DICOM as (column, row,
    slice), rasters as (row, column) or (page, row, column)."""
    affine: Affine
    """Voxel (i, j, k) to RAS millimetres in the file's units; the identity for rasters."""
    axes: tuple[int, int, int]
    """The source axis that becomes slice, row and column."""
    flips: tuple[bool, bool, bool]
    """Whether slice, row and column run against their source axis."""
    spacing: tuple[float, float, float]
    """(z, y, x) in mm; 1.0 (pixels) for rasters."""
    suffix: Suffix
    """Extension of label maps on this grid."""
    nifti: NiftiGeometry | None
    """Header fields for writing NIfTI; None for rasters."""

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """The source array's three spatial axes: singletons added to 2-D files, trailing ones dropped."""
        return spatial_shape(self.shape, self.kind)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(Z, H, W)."""
        source = self.volume_shape
        return source[self.axes[0]], source[self.axes[1]], source[self.axes[2]]

    def to_canonical(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Turn a source array into canonical orientation.

        Args:
            array: of shape ``self.shape``, any dtype; a last axis of 3 colours may follow.

        Returns:
            [Z, H, W] or [Z, H, W, 3], contiguous.

        Raises:
            GeometryError: the array has another shape.
        """
        depth = len(self.shape)
        if array.shape[:depth] != self.shape or array.shape[depth:] not in ((), (3,)):
            raise GeometryError(f"array of shape {array.shape} is not on the grid of shape {self.shape}")
        colours = array.shape[depth:]
        volume = array.reshape(self.volume_shape + colours).transpose(self._permutation(colours))
        return np.ascontiguousarray(np.flip(volume, self._flipped()))

    def to_source(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Turn a canonical array back into the source's order; the exact inverse of :meth:`to_canonical`.

        Args:
            array: [Z, H, W] or [Z, H, W, 3], any dtype.

        Returns:
            Array of shape ``self.shape`` (and 3 colours).

        Raises:
            GeometryError: the array has another shape than :attr:`canonical_shape`.
        """
        colours = array.shape[3:]
        if array.shape[:3] != self.canonical_shape or colours not in ((), (3,)):
            raise GeometryError(
                f"array of shape {array.shape} does not have the canonical shape {self.canonical_shape} of its source"
            )
        inverse = np.argsort(self._permutation(colours))
        return np.flip(array, self._flipped()).transpose(inverse).reshape(self.shape + colours)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; floats survive bit for bit."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SourceGrid:
        """Rebuild a grid from :meth:`to_json`.

        Raises:
            pydantic.ValidationError: the value is not a grid (a ``ValueError``).
        """
        return cls.model_validate(value)

    def _permutation(self, colours: tuple[int, ...]) -> tuple[int, ...]:
        return (*self.axes, 3) if colours else self.axes

    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)


def spatial_shape(shape: tuple[int, ...], kind: Kind) -> tuple[int, int, int]:
    """Return the three spatial sizes of a file's array; see :attr:`SourceGrid.volume_shape`."""
    if kind == "raster":
        first, second, third = (1, *shape) if len(shape) == 2 else shape
    else:
        first, second, third = (*shape, 1)[:3]
    return first, second, third


def raster_grid(shape: tuple[int, ...], suffix: Suffix) -> SourceGrid:
    """Return the grid of a raster of shape (row, column) or (page, row, column)."""
    return SourceGrid(
        kind="raster",
        shape=shape,
        affine=_IDENTITY,
        axes=(0, 1, 2),
        flips=(False, False, False),
        spacing=(1.0, 1.0, 1.0),
        suffix=suffix,
        nifti=None,
    )


def affine_grid(
    name: str,
    kind: Kind,
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    geometry: NiftiGeometry,
    slice_axis: SliceAxis,
) -> SourceGrid:
    """Return the grid of a NIfTI or DICOM array.

    Args:
        name: the file's name, for messages.
        kind: ``nifti`` or ``dicom``.
        shape: the array's shape, (i, j), (i, j, k) or with trailing singletons.
        affine: 4 x 4, voxel to RAS millimetres.
        geometry: header fields for writing.
        slice_axis: source axis to slice along; ``auto``: the only singleton axis, else the one with clearly the
            coarsest spacing, else the last. Files of two dimensions have one slice, whatever is asked.

    Raises:
        GeometryError: spacing that is zero or not finite (``bad_spacing``), or axes that do not span space.
    """
    sizes = spatial_shape(shape, kind)
    complete = complete_affine(name, affine, sizes)
    spacing = voxel_sizes(complete)
    chosen = 2 if len(shape) == 2 else _slice_axis(sizes, spacing, slice_axis)
    axes, flips = _orientation(complete, chosen)
    scale = _MM.get(geometry.xyzt_units & 0x07, 1.0)
    return SourceGrid(
        kind=kind,
        shape=shape,
        affine=_as_affine(complete),
        axes=axes,
        flips=flips,
        spacing=(
            float(spacing[axes[0]]) * scale,
            float(spacing[axes[1]]) * scale,
            float(spacing[axes[2]]) * scale,
        ),
        suffix=".nii.gz",
        nifti=geometry,
    )


def complete_affine(name: str, affine: npt.NDArray[np.float64], sizes: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """Check an affine; give an axis of one voxel that has no spacing (2-D files) a unit normal.

    Args:
        name: the file's name, for messages.
        affine: 4 x 4.
        sizes: the array's three spatial sizes.

    Raises:
        GeometryError: a spacing is zero or not finite (``bad_spacing``), or the axes do not span space.
    """
    result = np.array(affine, dtype=np.float64)
    if not np.isfinite(result).all():
        raise GeometryError(f"{name}: the affine holds NaN or infinite numbers; mend the header", reason="bad_spacing")
    spacing = voxel_sizes(result)
    missing = [axis for axis in range(3) if spacing[axis] == 0]
    if len(missing) == 1 and sizes[missing[0]] == 1:
        axis = missing[0]
        normal = np.cross(result[:3, (axis + 1) % 3], result[:3, (axis + 2) % 3])
        length = float(np.linalg.norm(normal))
        if length > 0:
            result[:3, axis] = normal / length
            missing = []
    if missing:
        listed = ", ".join(f"{value:g}" for value in spacing)
        raise GeometryError(
            f"{name}: voxel spacing must be above 0 along every axis, got ({listed}); mend the header",
            reason="bad_spacing",
        )
    if abs(float(np.linalg.det(result[:3, :3] / voxel_sizes(result)))) < 1e-4:
        raise GeometryError(f"{name}: the affine's axes are parallel, so it places no volume; mend the header")
    return result


def _as_affine(matrix: npt.NDArray[np.float64]) -> Affine:
    rows = [(float(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in matrix]
    return rows[0], rows[1], rows[2], rows[3]


def _slice_axis(sizes: tuple[int, int, int], spacing: npt.NDArray[np.float64], wanted: SliceAxis) -> int:
    if wanted != "auto":
        return wanted
    single = [axis for axis in range(3) if sizes[axis] == 1]
    if len(single) == 1:
        return single[0]
    coarsest = int(np.argmax(spacing))
    others = [spacing[axis] for axis in range(3) if axis != coarsest]
    return coarsest if spacing[coarsest] > _COARSER * max(others) else 2


def _orientation(
    affine: npt.NDArray[np.float64], slice_axis: int
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    ornt = io_orientation(affine)
    world = [int(row[0]) for row in ornt]
    to_ras = [float(row[1]) > 0 for row in ornt]
    # Columns before rows: left-right and then front-back lie along columns, head-foot along rows.
    rest = sorted((axis for axis in range(3) if axis != slice_axis), key=lambda axis: -world[axis])
    axes = (slice_axis, rest[0], rest[1])
    # RAS grows to right, anterior, superior; wanted are left, posterior and, within slices, inferior.
    wants_ras = [world[axis] == 2 and axis == slice_axis for axis in axes]
    flips = [to_ras[axis] != want for axis, want in zip(axes, wants_ras, strict=True)]
    return axes, (flips[0], flips[1], flips[2])

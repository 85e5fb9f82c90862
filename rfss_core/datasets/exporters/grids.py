"""Grids for formats that cannot hold every source's own one."""

from __future__ import annotations

import numpy as np
from nibabel.nifti1 import Nifti1Header

from rfss_core.imaging import SourceGrid
from rfss_core.imaging.nifti import header_geometry


def three_dimensional(grid: SourceGrid) -> SourceGrid:
    """Return a NIfTI grid without a fourth axis of one voxel, which readers take for channels."""
    if grid.suffix != ".nii.gz" or len(grid.shape) <= 3:
        return grid
    return grid.model_copy(update={"shape": grid.volume_shape})


def as_nifti(grid: SourceGrid) -> SourceGrid:
    """Return the NIfTI grid of a raster: columns, rows and pages become i, j and k, one unit apart.

    Rows grow to posterior and columns to the left, so that viewers show the picture upright. The sform's code is 2
    (aligned to something else): the picture lies nowhere in a scanner. Other grids come back as they are, see
    :func:`three_dimensional`.
    """
    if grid.suffix == ".nii.gz":
        return three_dimensional(grid)
    depth, height, width = grid.canonical_shape
    header = Nifti1Header()
    header.set_data_shape((width, height, depth))
    header.set_zooms((1.0, 1.0, 1.0))
    header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=2)
    return SourceGrid(
        kind="nifti",
        shape=(width, height, depth),
        affine=((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        axes=(2, 1, 0),
        flips=(False, False, False),
        spacing=(1.0, 1.0, 1.0),
        suffix=".nii.gz",
        nifti=header_geometry(header),
    )

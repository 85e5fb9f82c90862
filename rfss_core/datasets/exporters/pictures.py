"""Images of a case as a training framework's reader wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.imaging import SourceGrid, write_image
from rfss_core.imaging.nifti import encode_nifti
from rfss_core.imaging.output import write_atomically


def any_colour(content: ExportSet) -> bool:
    """Tell whether one image has colours: then all are to have three channels.

    Pictures whose channels are all the same are stored as grey ones, so a set in colour may hold both.
    """
    return any(case.stored.in_colour for case in content.cases)


def read_pixels(case: ExportCase, *, colour: bool) -> npt.NDArray[Any]:
    """Return a case's image, [Z, H, W], or [Z, H, W, 3] where ``colour`` is set."""
    pixels = case.stored.read_raw()
    if colour and pixels.ndim == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return pixels


def write_channels_last(pixels: npt.NDArray[Any], grid: SourceGrid, path: Path) -> None:
    """Write an image; a NIfTI in colour becomes 4-D, channels last, which MONAI's and nibabel's readers know.

    Args:
        pixels: [Z, H, W] or [Z, H, W, 3].
        grid: the grid to write on.
        path: must end in ``grid.suffix``.
    """
    if pixels.ndim == 4 and grid.suffix == ".nii.gz":
        wide = pixels.astype(np.int16) if pixels.dtype.itemsize == 1 else pixels.astype(np.float32)
        write_atomically(path, encode_nifti(grid.to_source(wide), grid))
    else:
        write_image(pixels, grid, path)

"""Masks of public data sets: read, checked against what the publisher declares, and re-coded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from PIL import Image, UnidentifiedImageError

from rfss_core.datasets.layouts.frames import frame_values, read_cine, read_header, volume_file
from rfss_core.datasets.layouts.layout import Layout, LayoutCase, Part, identity
from rfss_core.errors import LabelError, UnreadableImageError
from rfss_core.imaging.nifti import read_nifti
from rfss_core.imaging.raster import encode_raster
from rfss_core.settings import ImagingSettings

_NIFTI = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Tell by the name."""
    return path.name.lower().endswith(_NIFTI)


def label_map(case: LayoutCase, layout: Layout) -> bytes | None:
    """Check a labelled case's masks and return its label map.

    Args:
        case: with at least one mask.
        layout: whose values are allowed.

    Returns:
        The bytes of a ``.nii.gz`` or ``.png`` file; None where the one mask can be taken as it is.

    Raises:
        LabelError: values that the layout does not declare, another shape than the image's, or no foreground.
        CaseError: a file cannot be read.
    """
    arrays = [_read(part) for part in case.masks]
    shape = _shape(case.image)
    merged = np.zeros(shape, dtype=np.uint8)
    for part, array in zip(case.masks, arrays, strict=True):
        if array.shape != shape:
            raise LabelError(
                f"{part.path.name}: has shape {array.shape}, its image {case.image.path.name} has {shape}; they are "
                "not of one case"
            )
        np.maximum(merged, _recoded(part, array, layout), out=merged)
    if not layout.empty_masks and not merged.any():
        where = "" if case.masks[0].frame is None else f" in frame {case.masks[0].frame}"
        raise LabelError(f"{case.masks[0].path.name}: holds no foreground{where}")
    first = case.masks[0]
    if not is_nifti(first.path):
        return encode_raster(merged, ".png")
    if layout.values == identity(layout.classes) and first.frame is None and len(case.masks) == 1:
        return None
    header: Nifti1Header = read_header(first.path)
    return volume_file(header, merged)


def _read(part: Part) -> npt.NDArray[Any]:
    if not is_nifti(part.path):
        return read_grey(part.path)
    if part.frame is None:
        return read_nifti(part.path, ImagingSettings()).pixels
    cine = read_cine(part.path)
    if part.frame >= cine.stored.shape[3]:
        raise LabelError(f"{part.path.name}: has {cine.stored.shape[3]} frames, but frame {part.frame} is asked for")
    return frame_values(cine, part.frame)


def _shape(image: Part) -> tuple[int, ...]:
    if is_nifti(image.path):
        shape = tuple(int(size) for size in read_header(image.path).get_data_shape())
        return shape if image.frame is None else shape[:3]
    with _opened(image.path) as picture:
        return picture.height, picture.width


def read_grey(path: Path) -> npt.NDArray[np.uint8]:
    """Read a BMP or PNG whose grey values mean classes; colour where all channels are the same.

    Returns:
        uint8 [H, W].

    Raises:
        LabelError: colours.
        UnreadableImageError: damaged, or of another format.
    """
    with _opened(path) as picture:
        try:
            pixels = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImageError(f"{path.name}: cannot be read ({error}); copy the file again") from error
    if (pixels != pixels[..., :1]).any():
        raise LabelError(f"{path.name}: is a colour picture, not a mask")
    return np.ascontiguousarray(pixels[..., 0])


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=("BMP", "PNG", "JPEG"))
    except (UnidentifiedImageError, OSError) as error:
        raise UnreadableImageError(f"{path.name}: is no BMP, PNG or JPEG file; copy the file again") from error


def _recoded(part: Part, array: npt.NDArray[Any], layout: Layout) -> npt.NDArray[np.uint8]:
    found = np.unique(array)
    unknown = [f"{value:g}" for value in found.tolist() if value not in layout.values]
    if unknown:
        allowed = ", ".join(str(value) for value in sorted(layout.values))
        raise LabelError(
            f"{part.path.name}: holds value {', '.join(unknown[:3])}; masks of {layout.name} hold {allowed}"
        )
    table = np.zeros(256, dtype=np.uint8)
    for value, written in layout.values.items():
        table[value] = written
    return table[array.astype(np.uint8)]

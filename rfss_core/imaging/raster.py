"""Rasters: PNG, JPEG and TIFF."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from rfss_core.errors import CaseError, GeometryError, LabelError, UnreadableImageError
from rfss_core.imaging.grid import SourceGrid, Suffix, raster_grid
from rfss_core.imaging.limits import check_voxels
from rfss_core.settings import ImagingSettings

TIFF_SUFFIXES = (".tif", ".tiff")
_GREY = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}
_COLOURS = {"RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "PA"}
# Its remarks name files; what is wrong with one, our own errors say.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, MemoryError)
"""What Pillow and tifffile raise on damaged files (Pillow's PNG reader raises SyntaxError)."""


@dataclass(frozen=True)
class _Tiff:
    pixels: npt.NDArray[Any]
    shape: tuple[int, ...]
    inverted: bool
    colormap: npt.NDArray[np.uint16] | None


def read_raster(path: Path, settings: ImagingSettings) -> tuple[npt.NDArray[Any], SourceGrid]:
    """Read a PNG, JPEG or TIFF image.

    Grey of 8, 16 or 32 bits keeps its type; palettes and other colour spaces become RGB; alpha is dropped; colour
    images whose channels are all the same become grey. Pages of a TIFF are slices. Orientation tags are not applied:
    rows and columns are the file's. 16-bit colour PNGs come as 8 bits (Pillow has no such mode).

    Args:
        path: the file.
        settings: ``max_voxels`` is read.

    Returns:
        Array of shape ``grid.shape`` (and 3 colours), and the grid.

    Raises:
        UnreadableImageError: damaged (``unreadable``) or of an unknown colour mode (``unsupported_dtype``).
        GeometryError: too many pixels (``too_large``), pages that differ, or time series (``not_3d``).
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        tiff = _read_tiff(path, settings)
        pixels, shape = tiff.pixels, tiff.shape
        if tiff.colormap is not None:
            pixels = np.moveaxis(np.asarray(tiff.colormap)[:, pixels] >> 8, 0, -1).astype(np.uint8)
        elif tiff.inverted and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
    else:
        pixels, shape = _read_picture(path, settings, as_label=False)
    if pixels.ndim > len(shape) and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    suffix: Suffix = ".png" if len(shape) == 2 else ".tif"
    return pixels, raster_grid(shape, suffix)


def read_raster_label(path: Path, settings: ImagingSettings, *, exact: bool = False) -> npt.NDArray[Any]:
    """Read a label map from a PNG or TIFF: grey values, or indices of a palette, are class values.

    A binary mask whose only value besides 0 is 255, as drawing programs save it, becomes class 1, unless
    ``settings.classes`` declare a class 255. Colour is accepted where all channels are the same.

    Args:
        path: the file.
        settings: ``max_voxels`` and ``classes`` are read.
        exact: take a mask of 255 as it stands.

    Returns:
        Array of the file's shape, (row, column) or (page, row, column).

    Raises:
        LabelError: lossy JPEG, or colours (``bad_label``).
        UnreadableImageError: damaged.
        GeometryError: as for images.
    """
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        tiff = _read_tiff(path, settings)
        if tiff.inverted:
            raise LabelError(f"{path.name}: is stored as 'white is zero'; save the label map with 0 as black")
        pixels, shape = tiff.pixels, tiff.shape
    elif suffix == ".png":
        pixels, shape = _read_picture(path, settings, as_label=True)
    else:
        raise LabelError(f"{path.name}: JPEG smears label values; save the label map as PNG or TIFF")
    if pixels.ndim > len(shape):
        if (pixels != pixels[..., :1]).any():
            raise LabelError(
                f"{path.name}: is a colour picture, not a label map; convert it to grey or indexed, "
                "with the class numbers 0, 1, 2, ... as values"
            )
        pixels = pixels[..., 0]
    if exact or 255 in (settings.classes or {}):
        return pixels
    if pixels.dtype == np.uint8 and pixels.max(initial=0) == 255 and not ((pixels > 0) & (pixels < 255)).any():
        pixels = (pixels == 255).astype(np.uint8)
    return pixels


def encode_raster(
    array: npt.NDArray[Any], suffix: Suffix, palette: Mapping[int, tuple[int, int, int]] | None = None
) -> bytes:
    """Return the bytes of an 8-bit PNG, or of a multi-page TIFF (deflate); same pixels, same bytes.

    Args:
        array: uint8 label map or image of shape (row, column) for PNG, (page, row, column) for TIFF; an image may have
            a last axis of 3 colours, and in a TIFF any number type.
        suffix: ``.png`` or ``.tif``.
        palette: colours of values, for a PNG of indices that drawing programs show in colour.
    """
    stream = BytesIO()
    if suffix == ".png":
        image = Image.fromarray(np.ascontiguousarray(array))
        if palette is not None:
            image.putpalette([channel for value in range(256) for channel in palette.get(value, (value,) * 3)])
        image.save(stream, format="PNG")
    else:
        tifffile.imwrite(
            stream,
            np.ascontiguousarray(array),
            photometric="rgb" if array.ndim == 4 else "minisblack",
            compression="zlib",
            metadata=None,
            software=False,
        )
    return stream.getvalue()


def _read_picture(path: Path, settings: ImagingSettings, *, as_label: bool) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
    try:
        with warnings.catch_warnings():
            # Our own limit, checked below, decides how large is too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PNG", "JPEG", "MPO"))
        with image:
            shape = (image.height, image.width)
            check_voxels(path.name, shape, settings)
            if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                raise GeometryError(f"{path.name}: is an animation; save one frame a file", reason="not_3d")
            return _pixels(path, image, as_label=as_label), shape
    except Image.DecompressionBombError as error:
        raise GeometryError(
            f"{path.name}: {error}; tile it into smaller images or save it as TIFF", reason="too_large"
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{path.name}: is not a PNG or JPEG file; save the image again") from error
    except CaseError:
        raise
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _pixels(path: Path, image: Image.Image, *, as_label: bool) -> npt.NDArray[Any]:
    mode = image.mode
    if mode == "1":
        return np.asarray(image).astype(np.uint8)
    if mode in _GREY or (mode == "P" and as_label):
        grey = np.asarray(image)
        return grey.astype(grey.dtype.newbyteorder("="))
    if mode in ("LA", "La"):
        return np.asarray(image)[..., 0].copy()
    if mode == "RGB":
        return np.asarray(image).copy()
    if mode in _COLOURS or mode == "P":
        return np.asarray(image.convert("RGBA" if mode in ("P", "PA") else "RGB"))[..., :3].copy()
    raise UnreadableImageError(
        f"{path.name}: colour mode '{mode}' is not supported; save it as grey or RGB", reason="unsupported_dtype"
    )


def _read_tiff(path: Path, settings: ImagingSettings) -> _Tiff:
    try:
        with tifffile.TiffFile(path) as tiff:
            series = _only_series(path, tiff)
            axes, sizes = series.axes, tuple(int(size) for size in series.shape)
            plane = tuple(size for axis, size in zip(axes, sizes, strict=True) if axis != "S")
            stacked = tuple(size for size in plane[:-2] if size > 1)
            if len(stacked) > 1 or ("C" in axes and sizes[axes.index("C")] > 1):
                raise GeometryError(
                    f"{path.name}: has axes {axes} of sizes {sizes}; split channels and time points into files",
                    reason="not_3d",
                )
            shape = stacked + plane[-2:]
            check_voxels(path.name, shape, settings)
            pixels = _decode_tiff(path, series)
            page = series.keyframe
            inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
            colormap = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    except CaseError:
        raise
    except (*_BROKEN, tifffile.TiffFileError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if pixels.dtype.kind not in "buif" or pixels.dtype.itemsize > 8:
        raise UnreadableImageError(
            f"{path.name}: pixels of type {pixels.dtype} are not supported; save it as grey or RGB",
            reason="unsupported_dtype",
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    colours: tuple[int, ...] = ()
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
        # Grey with alpha has two samples; RGB with alpha four.
        colours = (3,) if pixels.shape[-1] >= 3 else ()
        pixels = pixels[..., :3] if colours else pixels[..., 0]
    return _Tiff(pixels.reshape(shape + colours), shape, inverted, colormap)


def _only_series(path: Path, tiff: tifffile.TiffFile) -> Any:
    if len(tiff.series) != 1:
        raise GeometryError(
            f"{path.name}: its {len(tiff.series)} image series have different shapes or types; save one a file",
            reason="mixed_geometry",
        )
    return tiff.series[0]


def _decode_tiff(path: Path, series: Any) -> npt.NDArray[Any]:
    try:
        decoded: npt.NDArray[Any] = series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        # LZW, JPEG and others: Pillow brings libtiff.
        with Image.open(path, formats=("TIFF",)) as image:
            pages = int(getattr(image, "n_frames", 1))
            frames = []
            for page in range(pages):
                image.seek(page)
                frames.append(np.array(image))
        decoded = np.stack(frames) if pages > 1 else frames[0]
        if decoded.shape != tuple(series.shape):
            raise UnreadableImageError(
                f"{path.name}: its compression needs a decoder that is not installed; run `pip install imagecodecs`",
                reason="missing_decoder",
            ) from error
    return decoded


def _damaged(path: Path, error: Exception) -> UnreadableImageError:
    reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
    return UnreadableImageError(f"{path.name}: cannot be read ({error}); check or copy the file again", reason=reason)

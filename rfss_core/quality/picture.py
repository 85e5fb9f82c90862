"""Pictures of slices with contours: prediction against expert."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError

PALETTE = ("#E69F00", "#56B4E9", "#33C08D", "#F0E442", "#D55E00", "#CC79A7", "#4F8FD9")
"""Colours of classes, in order of label value; after Okabe and Ito, told apart with any colour vision."""
EXPERT_COLOUR = "#ffffff"
_DPI = 100


@dataclass(frozen=True)
class Picture:
    """A slice to be shown."""

    image: npt.NDArray[np.floating[Any]]
    """Grey [H, W] or colour [H, W, 3], in [0, 1]."""
    caption: str
    """One line below the picture."""
    prediction: npt.NDArray[np.uint8] | None = None
    """Pseudo-label [H, W]: filled contours in the classes' colours."""
    truth: npt.NDArray[np.uint8] | None = None
    """Expert's label map [H, W]: dashed white contours beside a prediction, else in the classes' colours."""
    spacing: tuple[float, float] = (1.0, 1.0)
    """Pixel size (row, column), for the aspect."""


def class_colours(classes: Sequence[int]) -> dict[int, str]:
    """Return the colour of each label value, as ``#rrggbb``."""
    return {value: PALETTE[index % len(PALETTE)] for index, value in enumerate(sorted(classes))}


def largest_slice(labels: npt.NDArray[np.uint8]) -> int:
    """Return the index of the slice with the most foreground; the middle one where there is none.

    Args:
        labels: label map [Z, H, W].
    """
    areas = np.count_nonzero(labels, axis=(1, 2))
    return int(areas.argmax()) if areas.any() else labels.shape[0] // 2


def render_picture(picture: Picture, colours: dict[int, str], size: int = 420) -> bytes:
    """Draw a slice with its contours.

    Args:
        picture: the slice.
        colours: colour of each label value.
        size: length of the longer side in pixels.

    Returns:
        A PNG file.

    Raises:
        InputError: the image is not [H, W] or [H, W, 3], or a label map has another shape than the image.
    """
    image = np.clip(np.nan_to_num(np.asarray(picture.image, dtype=np.float32)), 0, 1)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"a picture's image must be [H, W] or [H, W, 3], got {image.shape}")
    shape = image.shape[:2]
    for labels in (picture.prediction, picture.truth):
        if labels is not None and labels.shape != shape:
            raise InputError(f"a picture's label map {labels.shape} must have the image's shape {shape}")
    # Without pyplot nothing is global, so pictures can be drawn in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = shape[0] * picture.spacing[0], shape[1] * picture.spacing[1]
    scale = size / max(height, width)
    figure = Figure(
        figsize=(max(width * scale, 16) / _DPI, max(height * scale, 16) / _DPI), dpi=_DPI, facecolor="black"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect="auto")
    if picture.prediction is not None:
        _contours(axes, picture.prediction, colours, fill=True)
    if picture.truth is not None:
        beside = picture.prediction is not None
        _contours(axes, picture.truth, dict.fromkeys(colours, EXPERT_COLOUR) if beside else colours, dashed=beside)
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(shape[0] - 0.5, -0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _contours(
    axes: Any, labels: npt.NDArray[np.uint8], colours: dict[int, str], *, fill: bool = False, dashed: bool = False
) -> None:
    # One pixel of background around lets contours close at the image's border.
    rows, columns = (np.arange(-1, length + 1) for length in labels.shape)
    for value, colour in colours.items():
        mask = np.pad(labels == value, 1).astype(np.float32)
        if not mask.any():
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No contour levels were found")
            if fill:
                axes.contourf(columns, rows, mask, levels=[0.5, 2.0], colors=[colour], alpha=0.28)
            axes.contour(
                columns, rows, mask, levels=[0.5], colors=[colour], linewidths=1.2 if dashed else 1.6,
                linestyles="dashed" if dashed else "solid",
            )  # fmt: skip

"""Overlap and surface-distance metrics of one case, computed by MONAI.

Implementations of the Hausdorff distance disagree; :data:`METRICS_LIBRARY` names the one used here, and reports
print it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import numpy.typing as npt

from rfss_core.errors import GeometryError, LabelError

METRICS_LIBRARY = f"MONAI {version('monai')}"
"""Name and version of the library that computes the metrics."""

Presence = Literal["both", "both_empty", "missed", "spurious"]

DEFAULT_TOLERANCE = 2.0
"""Millimetres that a surface may be off in the surface Dice."""


@dataclass(frozen=True)
class ClassMetric:
    """How well one class of one case, or of one slice, was found."""

    value: int
    """Label value of the class, 1 to 255."""
    name: str
    """Name of the class."""
    dice: float
    """Dice coefficient, 0 to 1."""
    hd95: float
    """Symmetric 95th-percentile Hausdorff distance in mm: the larger of the two directed percentiles."""
    presence: Presence
    """Where the class has voxels: in both masks, in none, in the truth only (missed), in the prediction only."""
    iou: float = math.nan
    """Intersection over union, 0 to 1."""
    surface_distance: float = math.nan
    """Average symmetric surface distance in mm: the mean over the surface voxels of both masks."""
    surface_dice: float = math.nan
    """Share of both surfaces, by area, that lies within the tolerance of the other (Nikolov et al.,
    arXiv:1809.04430), 0 to 1."""
    volume_difference: float = math.nan
    """Predicted minus true volume, ml; area in square cm where a single slice is measured in its plane."""
    true_volume: float = math.nan
    """The truth's own, in the same unit."""


def case_metrics(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    classes: Mapping[int, str],
    spacing: Sequence[float],
    tolerance: float = DEFAULT_TOLERANCE,
) -> list[ClassMetric]:
    """Compare a predicted label map with the expert's, class by class.

    Empty masks follow the convention of the BraTS challenges: both empty, the overlaps are 1 and the distances 0; only
    one empty, the overlaps are 0 and the distances the physical diagonal of the volume, the largest that the grid
    allows. :attr:`ClassMetric.presence` flags these cases.

    A single-slice volume is measured in its plane: in three dimensions each of its voxels would be a surface voxel.

    Args:
        prediction: label map [Z, H, W], integers.
        truth: the expert's label map [Z, H, W], integers.
        classes: label value to name, background excluded.
        spacing: voxel size (z, y, x) in mm.
        tolerance: of the surface Dice, mm.

    Returns:
        One metric a class, in ascending order of label value.

    Raises:
        GeometryError: shapes differ or are not 3-D, or a spacing is missing, not finite or not above 0.
        LabelError: a label map is not of an integer type or holds a value that ``classes`` does not declare.
    """
    size = _checked(prediction, truth, classes, spacing)
    return [
        _class_metric(prediction == value, truth == value, value, classes[value], size, tolerance)
        for value in sorted(classes)
    ]


def slice_metrics(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    classes: Mapping[int, str],
    spacing: Sequence[float],
    tolerance: float = DEFAULT_TOLERANCE,
) -> list[list[ClassMetric]]:
    """Compare the slices of a case one by one, each in its plane; see :func:`case_metrics`.

    Args:
        prediction: label map [Z, H, W], integers.
        truth: the expert's label map [Z, H, W], integers.
        classes: label value to name, background excluded.
        spacing: voxel size (z, y, x) in mm.
        tolerance: of the surface Dice, mm.

    Returns:
        For each slice one metric a class.

    Raises:
        GeometryError: see :func:`case_metrics`.
        LabelError: see :func:`case_metrics`.
    """
    size = _checked(prediction, truth, classes, spacing)
    return [
        [
            _class_metric(
                prediction[z : z + 1] == value, truth[z : z + 1] == value, value, classes[value], size, tolerance
            )
            for value in sorted(classes)
        ]
        for z in range(len(truth))
    ]


def _checked(
    prediction: npt.NDArray[np.uint8],
    truth: npt.NDArray[np.uint8],
    classes: Mapping[int, str],
    spacing: Sequence[float],
) -> tuple[float, float, float]:
    size = check_spacing(spacing)
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise GeometryError(
            f"prediction {prediction.shape} and truth {truth.shape} must have one shape [Z, H, W]; "
            "compare them on the source's grid"
        )
    for role, labels in (("prediction", prediction), ("truth", truth)):
        check_labels(labels, classes, role)
    return size


def check_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return the spacing (z, y, x) in mm as three positive floats.

    Args:
        spacing: voxel size (z, y, x) in mm.

    Raises:
        GeometryError: it has not three entries, or one is not finite or not above 0.
    """
    size = tuple(float(step) for step in spacing)
    if len(size) != 3 or not all(math.isfinite(step) and step > 0 for step in size):
        raise GeometryError(
            f"spacing {size} must be three finite numbers above 0 (z, y, x in mm); mend the header, "
            "or give 1.0 for pixel units",
            reason="bad_spacing",
        )
    return size


def check_labels(labels: npt.NDArray[np.integer], classes: Mapping[int, str], role: str) -> None:
    """Refuse a label map that ``classes`` does not describe.

    Args:
        labels: label map of any shape.
        classes: label value to name, background excluded.
        role: what the message calls the map.

    Raises:
        LabelError: its type is not an integer, or it holds an undeclared value.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise LabelError(f"the {role}'s label map must hold integers, got {labels.dtype}; round it first")
    strange = sorted(set(np.unique(labels).tolist()) - {0, *classes})
    if strange:
        raise LabelError(
            f"the {role} holds label values {strange[:10]} that are not among the declared {sorted(classes)}; "
            "declare them in imaging.classes or mend the label map"
        )


def _class_metric(
    prediction: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.bool_],
    value: int,
    name: str,
    spacing: tuple[float, float, float],
    tolerance: float,
) -> ClassMetric:
    flat = truth.shape[0] == 1
    # Cubic mm in a ml; square mm in a square cm, where there is no depth.
    unit = spacing[1] * spacing[2] / 100 if flat else math.prod(spacing) / 1000
    true_volume = unit * int(np.count_nonzero(truth))
    difference = unit * int(np.count_nonzero(prediction)) - true_volume
    predicted, present = bool(prediction.any()), bool(truth.any())
    if not predicted and not present:
        return ClassMetric(value, name, 1.0, 0.0, "both_empty", 1.0, 0.0, 1.0, 0.0, 0.0)
    if not (predicted and present):
        far = math.hypot(*(extent * step for extent, step in zip(truth.shape, spacing, strict=True)))
        presence: Presence = "missed" if present else "spurious"
        return ClassMetric(value, name, 0.0, far, presence, 0.0, far, 0.0, difference, true_volume)
    # torch and MONAI take seconds to import; help texts and clients of the other modules must not wait for it.
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    box = _bounding_box(prediction | truth)
    found, expert = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (prediction, truth))
    if flat:
        found, expert = found[:, :, 0], expert[:, :, 0]
    size = spacing[1:] if flat else spacing
    with warnings.catch_warnings():
        # MONAI 1.6 passes itself an argument that it deprecated.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        return ClassMetric(
            value=value,
            name=name,
            dice=float(compute_dice(found, expert, include_background=True)),
            hd95=float(compute_hausdorff_distance(found, expert, include_background=True, percentile=95, spacing=size)),
            presence="both",
            iou=float(compute_iou(found, expert, include_background=True)),
            surface_distance=float(
                compute_average_surface_distance(found, expert, include_background=True, symmetric=True, spacing=size)
            ),
            surface_dice=float(
                compute_surface_dice(
                    found, expert, [tolerance], include_background=True, spacing=size, use_subvoxels=True
                )
            ),
            volume_difference=difference,
            true_volume=true_volume,
        )


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the smallest box around a non-empty mask, one voxel wider where the volume allows."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(hits[0]) - 1, 0), int(hits[-1]) + 2))
    return tuple(box)

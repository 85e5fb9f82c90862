"""Dice of a structure's ends and middle apart: the basal, middle and apical slices of a heart, say.

Zhao et al. name basal and apical slices as their method's limitation; a mean over whole volumes hides them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rfss_core.errors import GeometryError

THIRDS = ("large end", "middle", "small end")
"""Thirds of the labelled slices, from the end with more labelled area. Of a heart in short axis: basal to apical."""


def dice_by_third(
    prediction: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], classes: Mapping[int, str]
) -> dict[str, dict[str, float]]:
    """Return the Dice of each class over each third of the slices that the expert labelled.

    The slices from the first to the last with any label are cut into three runs whose lengths differ by one slice at
    most (the middle takes what is left over). Dice is pooled over a third's slices. Slices beyond the labelled ones
    count nowhere.

    Args:
        prediction: label map [Z, H, W], integers.
        truth: the expert's label map [Z, H, W], integers.
        classes: label value to name, background excluded.

    Returns:
        By third (:data:`THIRDS`) and class name; without classes that the third's truth does not show, and empty for
        volumes with fewer than three labelled slices.

    Raises:
        GeometryError: shapes differ or are not 3-D.
    """
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise GeometryError(f"prediction {prediction.shape} and truth {truth.shape} must have one shape [Z, H, W]")
    labelled = np.flatnonzero((truth > 0).any(axis=(1, 2)))
    if labelled.size < 3:
        return {}
    first, last = int(labelled[0]), int(labelled[-1]) + 1
    end = round((last - first) / 3)
    parts = [slice(first, first + end), slice(first + end, last - end), slice(last - end, last)]
    if np.count_nonzero(truth[parts[0]]) < np.count_nonzero(truth[parts[2]]):
        parts.reverse()
    found: dict[str, dict[str, float]] = {}
    for name, part in zip(THIRDS, parts, strict=True):
        own, other = truth[part], prediction[part]
        found[name] = {}
        for value in sorted(classes):
            true, predicted = own == value, other == value
            if (size := int(true.sum())) > 0:
                found[name][classes[value]] = 2.0 * int((true & predicted).sum()) / (size + int(predicted.sum()))
    return found

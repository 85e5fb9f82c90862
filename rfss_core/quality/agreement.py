"""Agreement of a pseudo-label with one that fewer supports make, and the slices on which that is tried.

Where the choice of supports moves the mask, the mask is not to be trusted: the disagreement of segmenters that saw
different examples is the classic measure of committee-based selection (Seung, Opper, Sompolinsky, "Query by
committee", COLT 1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError
from rfss_core.quality.overlap import Overlap, overlap
from rfss_core.retrieval import Neighbours
from rfss_core.segmentation import Segmenter
from rfss_core.segmentation.segmenter import Slice, Supports


@dataclass(frozen=True)
class ProbedCase:
    """The slices of a pseudo-labelled case that are segmented again."""

    positions: tuple[int, ...]
    """Their places in the volume, see :func:`probed_slices`."""
    slices: Sequence[Slice]
    """Their pixels."""
    labels: Sequence[npt.NDArray[np.uint8]]
    """Their pseudo-labels [H, W]."""
    neighbours: Sequence[Neighbours]
    """The support slices that served each."""

    def __post_init__(self) -> None:
        """Refuse parts of different lengths."""
        if not len(self.positions) == len(self.slices) == len(self.labels) == len(self.neighbours):
            raise InputError(
                f"{len(self.positions)} positions, {len(self.slices)} slices, {len(self.labels)} label maps and "
                f"{len(self.neighbours)} lists of neighbours were given; each slice has one of each"
            )


@dataclass(frozen=True)
class Agreement:
    """How far a pseudo-label agrees with one from fewer supports, on some slices of a case."""

    positions: tuple[int, ...]
    """The slices."""
    overlap: Overlap
    """One row a slice, one column a class."""


def probed_slices(labels: npt.NDArray[np.uint8], share: float) -> list[int]:
    """Choose the slices of a case on which probes spend their time.

    Args:
        labels: pseudo-label [Z, H, W].
        share: at most this share of the case's slices, 0 to 1.

    Returns:
        Rising positions of ``floor(share * Z)`` slices with foreground, or of all of them where there are fewer,
        evenly spread: the middles of as many stretches of equal length.
    """
    shown = np.flatnonzero(labels.any(axis=(1, 2)))
    count = min(int(share * len(labels) + 1e-9), len(shown))
    return [int(shown[int((step + 0.5) * len(shown) / count)]) for step in range(count)]


def subset_agreement(cases: Sequence[ProbedCase], segmenter: Segmenter, support: Supports) -> list[Agreement]:
    """Segment slices again from every second of their supports, the nearest left out, and compare.

    Args:
        cases: the cases; all their slices go through the segmenter together.
        segmenter: the one that made the pseudo-labels.
        support: the support set that the neighbours point into.

    Returns:
        For each case the overlap of pseudo-label and second mask, of the slices that had two supports at least.
    """
    places = [
        (number, row, half)
        for number, case in enumerate(cases)
        for row, neighbours in enumerate(case.neighbours)
        if (half := every_second(neighbours)) is not None
    ]
    slices = [cases[number].slices[row] for number, row, _ in places]
    again = segmenter.segment(slices, [half for *_, half in places], support, keep_logits=False)
    values = sorted(support.classes)
    found = []
    for number, case in enumerate(cases):
        own = [(row, second) for (of, row, _), second in zip(places, again, strict=True) if of == number]
        pairs = [(case.labels[row], second.labels) for row, second in own]
        found.append(Agreement(tuple(case.positions[row] for row, _ in own), overlap(pairs, values)))
    return found


def every_second(neighbours: Neighbours) -> Neighbours | None:
    """Return the second, fourth, ... support of a query; None where there is but one, of any class."""
    if neighbours.fewest < 2 if neighbours.by_class else len(neighbours) < 2:
        return None
    if neighbours.by_class is None:
        return Neighbours(neighbours.indices[1::2], neighbours.distances[1::2])
    by_class = {value: rows[1::2] for value, rows in neighbours.by_class.items()}
    kept = np.isin(neighbours.indices, np.concatenate(list(by_class.values())))
    return Neighbours(neighbours.indices[kept], neighbours.distances[kept], by_class)

"""Signals of a pseudo-label's quality that need no expert label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from rfss_core.errors import InputError
from rfss_core.quality.agreement import Agreement
from rfss_core.quality.evidence import EVIDENCE_COLUMNS
from rfss_core.quality.overlap import Overlap, finite_mean

FOREGROUND = "foreground_fraction"
"""Name of the signal that is 0 for an empty pseudo-label."""

SIGNALS: Mapping[str, str] = {
    "predicted_iou": "SAM 2's own estimate of the mask's IoU, mean over slices that show the class",
    "object_score": "SAM 2's object score (logit), mean over slices that show the class",
    "object_margin": "distance of the object score from 0, mean over all slices",
    "stability": "pixels with a logit above 1 over those above -1 (SAM's stability score)",
    "expected_dice": "Dice that the mask would have if its probabilities were true",
    "entropy": "entropy of the class's probabilities, nats a foreground pixel",
    "fusion_agreement": "Dice with the majority vote of the retrieved masks",
    "vote_iou": "agreement of the retrieved masks with their vote, mean IoU",
    "fusion_ratio": "log ratio of the mask's size to the vote's, without its sign",
    "nearest_distance": "squared L2 to the nearest retrieved slice, mean over slices",
    "mean_distance": "squared L2 to all retrieved slices, mean over slices",
    FOREGROUND: "share of the voxels that are foreground",
    "slice_overlap": "Dice of the mask with itself, one slice further",
    "largest_part": "share of the foreground in its largest connected component",
    "subset_agreement": "Dice with masks from every second support, on probed slices",
    "reverse_dice": "Dice on labelled neighbours segmented from the pseudo-label (reverse check)",
}
"""What each signal is, for readers."""

SLICE_SIGNALS = tuple(name for name in SIGNALS if name not in ("largest_part", "reverse_dice"))
"""The signals of one slice."""


@dataclass(frozen=True)
class SegmentedCase:
    """What segmentation and probes leave behind about one case; Z slices, C classes."""

    labels: npt.NDArray[np.uint8]
    """Pseudo-label [Z, H, W]."""
    classes: Sequence[int]
    """Label values, rising."""
    evidence: pd.DataFrame
    """See :func:`rfss_core.quality.evidence.evidence_table`: Z x C rows."""
    agreement: Agreement | None = None
    """From :func:`rfss_core.quality.agreement.subset_agreement`; None: not probed."""
    reverse: Overlap | None = None
    """From :func:`rfss_core.quality.reverse.reverse_check`; None: not probed."""

    def __post_init__(self) -> None:
        """Refuse parts that contradict each other."""
        rows = self.labels.shape[0] * len(self.classes)
        if self.labels.ndim != 3 or len(self.evidence) != rows:
            raise InputError(
                f"a label map {self.labels.shape} with {len(self.classes)} classes needs {rows} rows of evidence, "
                f"got {len(self.evidence)}"
            )
        if missing := set(EVIDENCE_COLUMNS[3:]) - set(self.evidence.columns):
            raise InputError(f"the evidence lacks columns {sorted(missing)}")

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """Return one column of the evidence as [Z, C]."""
        values = self.evidence[name].to_numpy(np.float64)
        return values.reshape(self.labels.shape[0], len(self.classes))


@dataclass(frozen=True)
class CaseSignals:
    """Signals of one case; NaN where one does not apply."""

    case: Mapping[str, float]
    """Of the case: means over its classes."""
    by_class: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Of each class, by label value."""
    by_slice: Sequence[Mapping[str, float]] = ()
    """Of each slice: means over its classes; without ``largest_part`` and ``reverse_dice``."""


def signals_of(case: SegmentedCase) -> CaseSignals:
    """Reduce a segmented case to the signals from which its Dice is predicted.

    Args:
        case: the pseudo-label and what is known about it.

    Returns:
        Signals by name, see :data:`SIGNALS`, of the case, its classes and its slices.
    """
    whole = _Table(case).reduce(axis=0)
    whole["slice_overlap"] = _next_slices(case).pooled
    whole["largest_part"] = _largest_part(case)
    whole["subset_agreement"] = _probed(case.agreement.overlap if case.agreement else None, case)
    whole["reverse_dice"] = _probed(case.reverse, case)
    by_class = {value: {name: float(whole[name][c]) for name in SIGNALS} for c, value in enumerate(case.classes)}
    return CaseSignals(_over_classes(whole, SIGNALS), by_class, _slice_signals(case))


def case_signals(case: SegmentedCase) -> dict[str, float]:
    """Return :func:`signals_of` the case as a whole."""
    return dict(signals_of(case).case)


class _Table:
    """Signals that are sums and means over the evidence."""

    def __init__(self, case: SegmentedCase) -> None:
        self._case = case

    def reduce(self, axis: int | None) -> dict[str, npt.NDArray[np.float64]]:
        """Return signals over all slices, [C] (axis 0), or of each, [Z, C] (axis None)."""
        column, case = self._case.column, self._case

        def total(name: str) -> npt.NDArray[np.float64]:
            return column(name) if axis is None else column(name).sum(axis=axis)

        def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return values if axis is None else finite_mean(values, axis)

        shown = column("voxels") > 0
        voxels, vote = total("voxels"), total("fusion_voxels")
        pixels = case.labels[0].size * (1 if axis is None else case.labels.shape[0])
        return {
            "predicted_iou": mean(np.where(shown, column("predicted_iou"), np.nan)),
            "object_score": mean(np.where(shown, column("object_score"), np.nan)),
            "object_margin": mean(np.abs(column("object_score"))),
            "stability": _ratio(total("core"), total("wide")),
            "expected_dice": _ratio(2 * total("soft_both"), np.where(voxels > 0, total("soft_total"), 0.0)),
            "entropy": _ratio(total("entropy"), voxels),
            "fusion_agreement": _ratio(2 * total("fusion_both"), voxels + vote),
            "vote_iou": mean(np.where(shown, column("vote_iou"), np.nan)),
            # Ten pixels each, so that the ratio of two small masks stays calm.
            "fusion_ratio": np.where(voxels + vote > 0, np.abs(np.log((voxels + 10) / (vote + 10))), np.nan),
            "nearest_distance": mean(column("nearest_distance")),
            "mean_distance": mean(column("mean_distance")),
            FOREGROUND: voxels / pixels,
        }


def _slice_signals(case: SegmentedCase) -> list[dict[str, float]]:
    table = _Table(case).reduce(axis=None)
    depth, count = case.labels.shape[0], len(case.classes)
    beside = _next_slices(case).dice
    table["slice_overlap"] = np.full((depth, count), np.nan)
    if depth > 1:
        first, last = np.concatenate([beside[:1], beside]), np.concatenate([beside, beside[-1:]])
        table["slice_overlap"] = finite_mean(np.stack([first, last]), axis=0)
    table["subset_agreement"] = np.full((depth, count), np.nan)
    if case.agreement is not None and case.agreement.positions:
        table["subset_agreement"][list(case.agreement.positions)] = case.agreement.overlap.dice
    return [_over_classes({name: values[z] for name, values in table.items()}, SLICE_SIGNALS) for z in range(depth)]


def _over_classes(
    table: Mapping[str, npt.NDArray[np.float64]], names: Sequence[str] | Mapping[str, str]
) -> dict[str, float]:
    signals = {name: float(finite_mean(table[name])) for name in names}
    signals[FOREGROUND] = float(table[FOREGROUND].sum())
    return signals


def _next_slices(case: SegmentedCase) -> Overlap:
    """Return the overlap of each slice with the next, [Z - 1, C]."""
    masks = np.stack([case.labels == value for value in case.classes])
    sizes = masks.sum(axis=(2, 3)).T
    both = (masks[:, :-1] & masks[:, 1:]).sum(axis=(2, 3)).T
    return Overlap(both, sizes[:-1] + sizes[1:])


def _largest_part(case: SegmentedCase) -> npt.NDArray[np.float64]:
    from scipy.ndimage import label

    shares = []
    for value in case.classes:
        parts, count = label(case.labels == value)
        sizes = np.bincount(parts.ravel())[1:] if count else np.empty(0)
        shares.append(sizes.max() / sizes.sum() if count else np.nan)
    return np.array(shares, dtype=np.float64)


def _probed(overlap: Overlap | None, case: SegmentedCase) -> npt.NDArray[np.float64]:
    return np.full(len(case.classes), np.nan) if overlap is None or not len(overlap.both) else overlap.pooled


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio

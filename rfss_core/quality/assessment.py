"""Signals of pseudo-labelled cases: probes in batches, then what they and the evidence add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from rfss_core.quality.agreement import Agreement, ProbedCase, probed_slices, subset_agreement
from rfss_core.quality.overlap import Overlap
from rfss_core.quality.reverse import forgetful, reverse_check
from rfss_core.quality.signals import CaseSignals, SegmentedCase, signals_of
from rfss_core.retrieval import Neighbours
from rfss_core.segmentation import Segmenter
from rfss_core.segmentation.segmenter import Slice, Supports


@dataclass(frozen=True)
class PseudoLabelledCase:
    """A case as stage segment leaves it."""

    labels: npt.NDArray[np.uint8]
    """Pseudo-label [Z, H, W]."""
    evidence: pd.DataFrame
    """See :func:`rfss_core.quality.evidence.evidence_table`."""
    slices: Sequence[Slice] = ()
    """Pixels of all Z slices; only probes need them."""
    neighbours: Sequence[Neighbours] = ()
    """Support slices of all Z slices; only probes need them."""


class Assessor:
    """Finds the signals of pseudo-labelled cases.

    Args:
        support: the support set that labelled them.
        segmenter: the segmenter that did; None: cases are not probed.
        share: share of a case's slices that is segmented again.
    """

    def __init__(self, support: Supports, segmenter: Segmenter | None, share: float) -> None:
        self._support = support
        self._segmenter = segmenter if share > 0 else None
        self._reverse = forgetful(segmenter) if segmenter is not None and share > 0 else None
        self._share = share

    def assess(self, cases: Sequence[PseudoLabelledCase]) -> list[CaseSignals]:
        """Return the signals of some cases, which are probed together.

        Args:
            cases: as many as fit into memory.
        """
        values = sorted(self._support.classes)
        probed = self._probe(cases)
        return [
            signals_of(SegmentedCase(case.labels, values, case.evidence, agreement, reverse))
            for case, (agreement, reverse) in zip(cases, probed, strict=True)
        ]

    def _probe(self, cases: Sequence[PseudoLabelledCase]) -> list[tuple[Agreement | None, Overlap | None]]:
        if self._segmenter is None or self._reverse is None:
            return [(None, None)] * len(cases)
        chosen = [self._chosen(case) for case in cases]
        agreements = subset_agreement(chosen, self._segmenter, self._support)
        return list(zip(agreements, reverse_check(chosen, self._reverse, self._support), strict=True))

    def _chosen(self, case: PseudoLabelledCase) -> ProbedCase:
        positions = probed_slices(case.labels, self._share)
        return ProbedCase(
            tuple(positions),
            [case.slices[z] for z in positions],
            [case.labels[z] for z in positions],
            [case.neighbours[z] for z in positions],
        )

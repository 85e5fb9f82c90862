"""What stage segment stores about one case: labels, uncertainty, provenance, evidence of quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rfss_core.datasets import provenance_table
from rfss_core.datasets.origin import UNCERTAINTY
from rfss_core.quality.evidence import SegmentedSlice, evidence_table, uncertainty_map
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.segmentation import Segmentation

EVIDENCE = "evidence"
"""Table of stage segment: one row a slice and class, see :data:`rfss_core.quality.evidence.EVIDENCE_COLUMNS`."""


@dataclass(frozen=True)
class LabelledCase:
    """One case with what the segmenter and label fusion said about its slices."""

    case_id: str
    neighbours: Sequence[Neighbours]
    found: Sequence[Segmentation]
    votes: Sequence[Segmentation]
    support: SupportSet

    def arrays(self, threshold: float | None, *, with_fusion: bool) -> dict[str, npt.NDArray[Any]]:
        """Return label map, uncertainty (where the segmenter has logits) and, if asked for, label fusion's map."""
        arrays: dict[str, npt.NDArray[Any]] = {f"{self.case_id}/labels": self._labels}
        levels = [uncertainty_map(result, threshold) for result in self.found]
        known = [level for level in levels if level is not None]
        if len(known) == len(levels):
            arrays[f"{self.case_id}/{UNCERTAINTY}"] = np.stack(known)
        if with_fusion:
            arrays[f"{self.case_id}/fusion"] = np.stack([result.labels for result in self.votes])
        return arrays

    def evidence(self, threshold: float | None) -> pd.DataFrame:
        """Return the case's evidence of quality, one row a slice and class."""
        slices = [
            SegmentedSlice(found, vote, near)
            for found, vote, near in zip(self.found, self.votes, self.neighbours, strict=True)
        ]
        return evidence_table(self.case_id, slices, self.support.class_values, threshold)

    def provenance(self) -> pd.DataFrame:
        """Return the case's provenance, one row a slice and class (invariant 6)."""
        hits, support = self.neighbours, self.support
        return provenance_table(
            case_id=self.case_id,
            classes=support.class_values,
            support_ids=[[support.ids[index] for index in hit.indices] for hit in hits],
            distances=[hit.distances for hit in hits],
            labels=self._labels,
            object_score=np.stack([result.object_score for result in self.found]),
            predicted_iou=np.stack([result.predicted_iou for result in self.found]),
            serving=[[np.isin(hit.indices, hit.for_class(value)) for value in support.class_values] for hit in hits],
        )

    @property
    def _labels(self) -> npt.NDArray[np.uint8]:
        return np.stack([result.labels for result in self.found])

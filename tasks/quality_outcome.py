"""What stage quality found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from rfss_core.quality import (
    AcceptancePoint,
    CaseMeasurement,
    Decision,
    GateResult,
    QualityPrediction,
    QualitySummary,
)
from rfss_core.quality.voxels import VoxelPoint


@dataclass(frozen=True)
class QualityOutcome:
    """What is known about the pseudo-labels' quality. Cases are named by their ids."""

    measurements: tuple[CaseMeasurement, ...]
    summary: QualitySummary
    fusion_summary: QualitySummary
    """The same held-out cases labelled by majority vote of the retrieved masks."""
    prediction: QualityPrediction
    decisions: dict[str, Decision]
    gate: GateResult
    by_class: dict[str, QualityPrediction] = field(default_factory=dict)
    """The same prediction for each class alone, by the class's name."""
    slices: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Unlabelled cases slice by slice: case_id, slice, predicted, lower, decision (see ``predict_slices``)."""
    slice_prediction: QualityPrediction = field(default_factory=QualityPrediction)
    """How well the Dice of slices is predicted; names no slice."""
    acceptance: tuple[AcceptancePoint, ...] = ()
    """Coverage against quality on the held-out cases."""
    voxels: tuple[VoxelPoint, ...] = ()
    """What levels of uncertainty are worth, on the held-out cases."""

    @property
    def slice_counts(self) -> dict[str, int]:
        """Number of unlabelled cases' slices by decision."""
        counts: dict[Any, int] = self.slices["decision"].value_counts().to_dict() if len(self.slices) else {}
        return {name: int(counts.get(name, 0)) for name in ("accept", "review", "reject")}

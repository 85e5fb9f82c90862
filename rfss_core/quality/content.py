"""What the report shows: a run's figures, pictures and provenance, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rfss_core.quality.decision import AcceptancePoint, Decision
from rfss_core.quality.gate import GateResult
from rfss_core.quality.picture import Picture
from rfss_core.quality.prediction import QualityPrediction
from rfss_core.quality.summary import CaseMeasurement, QualitySummary
from rfss_core.settings import QualitySettings


@dataclass(frozen=True)
class ModelFact:
    """A model that took part."""

    role: str
    """``embedding`` or ``segmentation``."""
    name: str
    sha256: str
    trained: bool
    """False for weights drawn from a seed: the page warns."""


@dataclass(frozen=True)
class Comparison:
    """A held-out case: its prediction against the expert, beside the supports that were retrieved for it."""

    rank: str
    """``best``, ``median`` or ``worst`` (see :func:`typical_cases`)."""
    measurement: CaseMeasurement
    picture: Picture
    """The slice with the most foreground."""
    worst: Picture | None = None
    """The slice with the most wrong pixels, where it is another one."""
    supports: Sequence[Picture] = ()
    """The retrieved support slices with their expert's label maps, nearest first."""


@dataclass(frozen=True)
class QueueRow:
    """A pseudo-label in the review queue."""

    case: str
    """Case id."""
    decision: Decision
    predicted: float | None
    """Predicted Dice."""
    lower: float | None
    """Its lower bound."""
    gain: float | None = None
    """Expected rise of the other pseudo-labels' mean Dice where this one is corrected."""
    reason: str = ""
    picture: Picture | None = None
    """Its slice with the most foreground; shown for the head of the queue."""


@dataclass(frozen=True)
class QuarantineRow:
    """A case that was set aside."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True)
class ReportContent:
    """All that the report shows. Cases are named as a reader knows them; nothing is read from elsewhere."""

    dataset: str
    """Name of the data set."""
    version: str | None
    """Its version, where it has one."""
    digest: str
    """Digest of its manifest."""
    fingerprint: str
    preset: str
    k: int
    classes: Mapping[int, str]
    """Label value to name."""
    counts: Mapping[str, int]
    """Numbers of cases and slices by what they are; ``labelled``, ``unlabelled``, ``quarantined`` ..."""
    settings: QualitySettings
    """Thresholds of the gate and of decisions."""
    gate: GateResult
    summary: QualitySummary
    measurements: Sequence[CaseMeasurement]
    prediction: QualityPrediction
    decisions: Mapping[str, Decision]
    """Decision of each pseudo-labelled case; its keys are those of ``prediction.predicted``."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What to call a case id, in measurements, prediction and decisions; default: the id."""
    fusion: QualitySummary | None = None
    """The same held-out cases labelled by label fusion: the floor."""
    comparisons: Sequence[Comparison] = ()
    queue: Sequence[QueueRow] = ()
    """Pseudo-labels, the first to review first. Default: the cases of ``decisions``, the least certain first."""
    by_class: Mapping[str, QualityPrediction] = field(default_factory=dict)
    """The prediction of each class alone."""
    acceptance: Sequence[AcceptancePoint] = ()
    """Coverage against quality on the held-out cases."""
    unlabelled: Sequence[Picture] = ()
    """Pseudo-labels of unlabelled cases."""
    quarantine: Sequence[QuarantineRow] = ()
    models: Sequence[ModelFact] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings as plain JSON types."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of software that took part."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by stage, in order."""
    warnings: Sequence[str] = ()
    review_command: str = ""
    """How to export the head of the queue to a reviewer."""
    created: str = ""
    """When, as a text for readers."""

"""The run's summary: ``summary.json``, the contract with scripts and downstream jobs (docs/outputs.md)."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rfss_core.errors import InputNotFoundError
from rfss_core.store import Workspace

SUMMARY = "summary.json"
UNTRAINED = "UNTRAINED weights"
"""How the warning about weights that were never trained begins."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DatasetPart(_Part):
    """The pseudo-label data set."""

    name: str
    version: str | None
    digest: str
    status: Literal["accepted", "rejected"]


class CasesPart(_Part):
    """Counts of cases.

    ``support`` and ``held_out`` add up to ``labelled``, but for reviewed cases of held-out patients, which are neither.
    """

    labelled: int
    support: int
    held_out: int
    unlabelled: int
    quarantined: int
    reviewed: int = 0
    """Labelled cases whose label map is a corrected pseudo-label (``rfss review import``)."""


class SourcesPart(_Part):
    """How the sources differ from those of the last run that ended in this workspace."""

    added: int = 0
    changed: list[str] = Field(default_factory=list)
    """Names of cases whose image or label file changed."""
    removed: list[str] = Field(default_factory=list)
    """Names of cases whose image is gone."""


class IntervalPart(_Part):
    """A mean over patients with its bootstrap interval; None where it is not defined."""

    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    """Patients."""


class IndexPart(_Part):
    """How support slices were searched."""

    kind: str = "flat"
    shards: int = 1
    recall: float = 1.0
    """Share of the true k nearest that is found, as measured when the index was built; 1 where it is exact."""
    filtered_recall: float = 1.0
    """The least such share under a filter."""


class DecisionsPart(_Part):
    """Counts of decisions over the cases that got pseudo-labels."""

    accept: int = 0
    review: int = 0
    reject: int = 0


class QualityPredictionPart(_Part):
    """How well predicted Dice agreed with true Dice in cross-validation; None where it could not be measured."""

    mae: float | None
    spearman: float | None
    coverage: float | None


class SignalPart(_Part):
    """A quality signal's own worth, by cross-validation over the held-out patients."""

    name: str
    cases: int
    correlation: float | None
    mae_alone: float
    spearman_alone: float | None
    mae_without: float | None
    spearman_without: float | None


class ModelPart(_Part):
    """A model that took part."""

    name: str
    digest: str
    trained: bool


class Summary(_Part):
    """What a run of ``label_dataset`` did."""

    dataset: DatasetPart
    fingerprint: str
    preset: str
    k: int
    cases: CasesPart
    sources: SourcesPart = Field(default_factory=SourcesPart)
    slices: int
    """Slices in the workspace."""
    chunks: int
    """Chunks that were segmented, in this run or before."""
    held_out_dice: dict[str, IntervalPart]
    """Per class and ``mean``."""
    held_out_hd95: dict[str, IntervalPart]
    """Per class and ``mean``, in mm."""
    held_out_metrics: dict[str, dict[str, IntervalPart]] = Field(default_factory=dict)
    """IoU, average surface distance (mm), surface Dice, volume difference (ml): per class and ``mean``."""
    label_fusion_dice: dict[str, IntervalPart]
    """The same cases labelled by majority vote of the retrieved masks: the floor."""
    index: IndexPart = Field(default_factory=IndexPart)
    decisions: DecisionsPart
    quality_prediction: QualityPredictionPart
    slice_decisions: DecisionsPart = Field(default_factory=DecisionsPart)
    """Slices of the unlabelled cases; those with an empty pseudo-label are not counted."""
    signals: list[SignalPart] = Field(default_factory=list)
    """What each quality signal is worth on the held-out cases, the best alone first."""
    gate: list[str] = Field(default_factory=list)
    """Why the gate failed, or remarks on a gate that passed."""
    models: dict[str, ModelPart]
    """``embedding`` and ``segmentation``."""
    warnings: list[str] = Field(default_factory=list)
    seconds: dict[str, float]
    mlflow_run_id: str | None
    report: str


def write_summary(workspace: Workspace, summary: Summary) -> None:
    """Write ``summary.json`` atomically."""
    workspace.files.write_bytes(SUMMARY, (summary.model_dump_json(indent=2) + "\n").encode())


def read_summary(url: str) -> Summary:
    """Read a workspace's summary.

    Raises:
        InputNotFoundError: no run has finished there.
    """
    workspace = Workspace.open(url, create=False)
    if not workspace.files.exists(SUMMARY):
        raise InputNotFoundError(f"'{url}' holds no {SUMMARY}: no run has finished there yet; see `rfss status {url}`")
    return Summary.model_validate_json(workspace.files.read_bytes(SUMMARY))


def last_summary(workspace: Workspace) -> Summary | None:
    """Return what the last run of a workspace wrote; None without one, or where an older release wrote it."""
    if not workspace.files.exists(SUMMARY):
        return None
    try:
        return Summary.model_validate_json(workspace.files.read_bytes(SUMMARY))
    except ValidationError:
        return None


def jsonable(value: Any) -> float | None:
    """Return a finite float, or None: JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None

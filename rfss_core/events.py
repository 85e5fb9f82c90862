"""Typed events: the one stream that progress bars, Prefect artifacts, logs and MLflow read (invariant 10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Root of all events."""


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins."""

    flow: str
    dataset: str
    preset: str
    executor: str
    version: str
    """Of RFSS."""


@dataclass(frozen=True)
class StageStarted(Event):
    """A stage begins."""

    stage: str
    """Name of the stage: ingest, embed, index, segment, quality, register."""
    total: int
    """Units of work in the stage, done ones included."""
    done: int
    """Units whose completion records were found and trusted."""
    unit: str = "chunks"
    """What is counted."""


@dataclass(frozen=True)
class ChunkFinished(Event):
    """One unit of work is complete and recorded."""

    stage: str
    chunk: str
    slices: int
    read_s: float
    compute_s: float
    write_s: float


@dataclass(frozen=True)
class ChunkRetried(Event):
    """One unit of work was not done, and is tried again."""

    stage: str
    chunk: str
    attempt: int
    """The one that failed, from 1."""
    reason: str
    """``store`` and the like where storage was away, ``killed_worker``, ``isolated``."""
    message: str


@dataclass(frozen=True)
class ChunkFailed(Event):
    """One unit of work failed for good."""

    stage: str
    chunk: str
    reason: str
    message: str


@dataclass(frozen=True)
class CaseQuarantined(Event):
    """A case was set aside with a typed reason."""

    name: str
    reason: str
    message: str
    case_id: str = ""
    """What logs and metrics call it: they hold neither ``name`` nor ``message``, which may tell a patient's name."""


@dataclass(frozen=True)
class StageFinished(Event):
    """A stage ends."""

    stage: str
    seconds: float
    note: str = ""
    """One short clause for the log."""


@dataclass(frozen=True)
class QualityMeasured(Event):
    """What a run knows about the quality of its pseudo-labels; None where a figure is not defined."""

    dice: Mapping[str, float | None]
    """Mean over held-out patients, for each class and ``mean``."""
    dice_low: Mapping[str, float | None]
    """Lower end of its interval."""
    decisions: Mapping[str, int]
    """Unlabelled cases by what was decided: accept, review, reject."""
    predicted_dice: tuple[float, ...]
    """Of each unlabelled case."""
    gate_passed: bool | None


@dataclass(frozen=True)
class DriftMeasured(Event):
    """How far a run moved away from what was before it."""

    dice_change: float | None
    """Mean held-out Dice less that of the workspace's last run."""
    distant_share: float | None
    """Share of unlabelled slices that look unlike the labelled ones."""
    alerts: int
    """How many of the two are beyond what the settings allow."""


@dataclass(frozen=True)
class DatasetRegistered(Event):
    """A data set stands in the registry."""

    dataset: str
    dataset_version: str | None
    status: str
    """accepted or rejected."""
    fingerprint: str
    mlflow_run: str | None


@dataclass(frozen=True)
class RunEnded(Event):
    """A run ends."""

    state: str
    """finished, failed or stopped."""
    seconds: float


Listener = Callable[[Event], None]


@dataclass
class EventStream:
    """Fan-out of events to listeners, in the driver's process.

    A listener that raises would end the run it merely watches, so listeners are expected to be total.
    """

    listeners: list[Listener] = field(default_factory=list)

    def subscribe(self, listener: Listener) -> None:
        """Add a listener."""
        self.listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Hand an event to every listener, in order of subscription."""
        for listener in self.listeners:
            listener(event)

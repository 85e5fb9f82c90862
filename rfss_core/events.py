"""Typed events: the one stream that progress bars, Prefect artifacts, logs and MLflow read (invariant 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Root of all events."""


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


@dataclass(frozen=True)
class StageFinished(Event):
    """A stage ends."""

    stage: str
    seconds: float
    note: str = ""
    """One short clause for the log."""


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

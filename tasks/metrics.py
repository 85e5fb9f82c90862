"""A run's metrics for Prometheus, summed up from the event stream (docs/observability.md has the table)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from rfss_core.events import (
    CaseQuarantined,
    ChunkFailed,
    ChunkFinished,
    ChunkRetried,
    DatasetRegistered,
    DriftMeasured,
    Event,
    QualityMeasured,
    RunEnded,
    RunStarted,
    StageFinished,
    StageStarted,
)
from tasks.executor import Load

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Upper ends of the buckets of a chunk's seconds."""
DICE = tuple(round(step / 20, 2) for step in range(1, 21))
"""Upper ends of the buckets of a predicted Dice."""
WHOSE = ("flow", "dataset")
"""Labels of every metric: what tells runs apart in one Prometheus."""

Metric = TypeVar("Metric", bound=MetricWrapperBase)


class RunMetrics:
    """Listener that keeps the metrics of one run in a registry of its own.

    Args:
        run: the run's id.
        load: what the executor does at this moment; None: nobody knows.
    """

    def __init__(self, run: str, load: Callable[[], Load] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._id, self._load = run, load
        self._flow = self._dataset = ""
        self._left: dict[str, int] = {}
        self._aside: set[tuple[str, str]] = set()
        self._info = self._make(Gauge, "run_info", "The run: always 1.", "run", "version", "preset", "executor")
        self._running = self._make(Gauge, "run_running", "1 while the run goes on, 0 when it has ended.")
        self._ended = self._make(Gauge, "run_ended", "1 for how the run ended: finished, failed or stopped.", "state")
        self._seconds = self._make(Gauge, "run_seconds", "Seconds that the run took, once it has ended.")
        self._heard = self._make(Gauge, "last_event_timestamp_seconds", "When the run last gave news, Unix time.")
        self._chunks = self._make(
            Counter, "chunks_total", "Units of work by what became of them: done, found (done before), failed.",
            "stage", "outcome",
        )  # fmt: skip
        self._slices = self._make(Counter, "slices_total", "Slices of the chunks that this run did.", "stage")
        self._chunk_seconds = self._make(
            Histogram, "chunk_seconds", "Seconds of a chunk's phases: read, compute, write.", "stage", "phase",
            buckets=SECONDS,
        )  # fmt: skip
        self._retries = self._make(Counter, "retries_total", "Attempts that were repeated.", "stage", "reason")
        self._queue = self._make(
            Gauge, "queue_chunks", "Units of work of a stage: left (in flight included), in_flight.", "stage", "state"
        )
        self._workers = self._make(Gauge, "workers", "Worker processes, as last counted.")
        self._stage_seconds = self._make(Gauge, "stage_seconds", "Wall seconds of a stage that has ended.", "stage")
        self._quarantined = self._make(Counter, "quarantined_cases_total", "Cases that were set aside.", "reason")
        self._dice = self._make(Gauge, "held_out_dice", "Mean Dice over held-out patients.", "class")
        self._dice_low = self._make(Gauge, "held_out_dice_low", "Lower end of its interval.", "class")
        self._predicted = self._make(Histogram, "predicted_dice", "Predicted Dice of unlabelled cases.", buckets=DICE)
        self._decisions = self._make(Gauge, "decided_cases", "Unlabelled cases by decision.", "decision")
        self._gate = self._make(Gauge, "gate_passed", "1 where the quality gate passed, 0 where it failed.")
        self._distant = self._make(
            Gauge, "distant_slice_share", "Share of unlabelled slices that look unlike the labelled ones."
        )
        self._change = self._make(
            Gauge, "held_out_dice_change", "Mean held-out Dice less that of the workspace's last run."
        )
        self._alerts = self._make(Gauge, "drift_alerts", "Figures of drift beyond what the settings allow.")
        self._dataset_info = self._make(
            Gauge, "dataset_info", "The data set that the run registered: always 1.", "dataset_version", "status"
        )

    def _make(
        self, kind: type[Metric], name: str, text: str, *labels: str, buckets: tuple[float, ...] | None = None
    ) -> Metric:
        more: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        return kind(f"rfss_{name}", text, [*WHOSE, *labels], registry=self.registry, **more)

    def _of(self, metric: Metric, **labels: str) -> Metric:
        return metric.labels(flow=self._flow, dataset=self._dataset, **labels)

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case RunStarted():
                self._begin(event)
            case StageStarted(stage, total, done):
                self._begin_stage(stage, total, done)
            case ChunkFinished(stage, _, slices, read_s, compute_s, write_s):
                self._settle(stage, "done")
                self._of(self._slices, stage=stage).inc(slices)
                for phase, seconds in (("read", read_s), ("compute", compute_s), ("write", write_s)):
                    self._of(self._chunk_seconds, stage=stage, phase=phase).observe(seconds)
            case ChunkRetried(stage, _, _, reason):
                self._of(self._retries, stage=stage, reason=reason).inc()
            case ChunkFailed(stage):
                self._settle(stage, "failed")
            case CaseQuarantined(name, reason):
                # Whatever meets the case later tells it again.
                if (name, reason) not in self._aside:
                    self._aside.add((name, reason))
                    self._of(self._quarantined, reason=reason).inc()
            case StageFinished(stage, seconds):
                self._left[stage] = 0
                self._of(self._stage_seconds, stage=stage).inc(seconds)
            case QualityMeasured():
                self._measure(event)
            case DriftMeasured(change, share, alerts):
                self._set(self._change, change)
                self._set(self._distant, share)
                self._set(self._alerts, alerts)
            case DatasetRegistered(_, version, status):
                self._of(self._dataset_info, dataset_version=version or "", status=status).set(1)
            case RunEnded(state, seconds):
                self._of(self._running).set(0)
                self._of(self._ended, state=state).set(1)
                self._of(self._seconds).set(seconds)
            case _:
                pass
        self._of(self._heard).set(time.time())

    def _begin(self, event: RunStarted) -> None:
        self._flow, self._dataset = event.flow, event.dataset
        told = {"version": event.version, "preset": event.preset, "executor": event.executor}
        self._of(self._info, run=self._id, **told).set(1)
        self._of(self._running).set(1)
        if self._load is not None:
            load = self._load
            self._of(self._workers).set_function(lambda: load().workers)

    def _begin_stage(self, stage: str, total: int, done: int) -> None:
        self._of(self._chunks, stage=stage, outcome="found").inc(done)
        # Both outcomes exist from the start: a rate over a series that appears with its first failure is empty.
        for outcome in ("done", "failed"):
            self._of(self._chunks, stage=stage, outcome=outcome)
        self._of(self._slices, stage=stage)
        self._left[stage] = total - done
        self._of(self._queue, stage=stage, state="left").set_function(lambda: self._left[stage])
        self._of(self._queue, stage=stage, state="in_flight").set_function(lambda: self._in_flight(stage))

    def _settle(self, stage: str, outcome: str) -> None:
        self._of(self._chunks, stage=stage, outcome=outcome).inc()
        self._left[stage] = max(0, self._left.get(stage, 0) - 1)

    def _in_flight(self, stage: str) -> int:
        # One stage runs at a time: what flies is the last one's that has anything left.
        return min(self._left[stage], self._load().in_flight) if self._load is not None else 0

    def _measure(self, event: QualityMeasured) -> None:
        for metric, values in ((self._dice, event.dice), (self._dice_low, event.dice_low)):
            for name, value in values.items():
                self._set(metric, value, **{"class": name})
        for decision, count in event.decisions.items():
            self._set(self._decisions, count, decision=decision)
        for value in event.predicted_dice:
            self._of(self._predicted).observe(value)
        if event.gate_passed is not None:
            self._set(self._gate, event.gate_passed)

    def _set(self, metric: Gauge, value: float | None, **labels: str) -> None:
        self._of(metric, **labels).set(math.nan if value is None else value)

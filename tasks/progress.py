"""Listeners to the event stream: the terminal's bars, Prefect's artifacts and the log."""

from __future__ import annotations

import logging
import time
from typing import Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
from tasks.json_lines import event_fields
from tasks.spectator import server_answers

log = logging.getLogger("rfss")


class TerminalProgress:
    """Bars in the terminal, one a stage; use as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._slices: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StageStarted(stage, total, done, unit):
                self._began[stage], self._slices[stage] = time.perf_counter(), 0
                if stage in self._bars:
                    # Of a study's next row.
                    self._progress.reset(self._bars[stage], total=total, completed=done, unit=unit, rate="")
                else:
                    self._bars[stage] = self._progress.add_task(stage, total=total, completed=done, unit=unit, rate="")
            case ChunkFinished(stage, _, slices):
                self._slices[stage] += slices
                rate = self._slices[stage] / max(1e-9, time.perf_counter() - self._began[stage])
                self._progress.update(self._bars[stage], advance=1, rate=f"{rate:.0f} slices/s" if slices else "")
            case CaseQuarantined(name, reason, message) if name not in self._said:
                self._said.add(name)
                self._progress.console.print(f"[yellow]set aside[/] {name} ({reason}): {message}", highlight=False)
            case ChunkFailed(stage, chunk, _, message):
                self._progress.console.print(f"[red]failed[/] {stage} {chunk}: {message}", highlight=False)
            case StageFinished(stage, _, _) if stage in self._bars:
                bar = self._bars[stage]
                self._progress.update(bar, completed=self._progress.tasks[bar].total)
            case _:
                pass


class PrefectProgress:
    """Progress artifacts in the Prefect UI, at most one update in two seconds a stage, with rates and time left.

    The UI is a spectator: a server that goes away costs its pictures, not the run. It is asked again every half minute.
    """

    INTERVAL_S = 2.0
    AWAY_S = 30.0

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._stage, self._unit = "", ""
        self._total = self._done = self._before = self._slices = 0
        self._began = self._updated = 0.0
        self._away_until = 0.0

    def __call__(self, event: Event) -> None:
        """Forward one event."""
        try:
            self._forward(event)
        except Exception as error:  # noqa: BLE001 - whatever an HTTP client raises
            if self._away_until == 0.0:
                log.warning("the Prefect server does not answer (%s); the run goes on without its UI", error)
            self._away_until = time.monotonic() + self.AWAY_S

    def _forward(self, event: Event) -> None:
        match event:
            case StageStarted(stage, total, done, unit):
                self._stage, self._unit, self._total, self._before = stage, unit, total, done
                self._done, self._slices, self._artifact = done, 0, None
                self._began, self._updated = time.monotonic(), 0.0
                self._update()
            case ChunkFinished(_, _, slices):
                self._done += 1
                self._slices += slices
                if time.monotonic() - self._updated >= self.INTERVAL_S:
                    self._update()
            case StageFinished(_, seconds, note) if self._stage:
                self._done = self._total
                self._update(f"finished in {seconds:.1f} s" + (f", {note}" if note else ""))
                self._stage = ""
            case _:
                pass

    def _update(self, ending: str = "") -> None:
        if time.monotonic() < self._away_until:
            return
        if not server_answers():
            raise ConnectionError("no answer to a call of its health")
        percent = 100.0 * self._done / self._total if self._total else 100.0
        text = f"Stage {self._stage}: {self._done} of {self._total} {self._unit}{self._rate(bool(ending))}"
        text = f"{text}, {ending}" if ending else text
        if self._artifact is None:
            artifact = create_progress_artifact(percent, key=f"rfss-{self._stage}", description=text)
            self._artifact = artifact if isinstance(artifact, UUID) else None
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self._artifact, ArtifactUpdate(data=percent, description=text))
        self._updated, self._away_until = time.monotonic(), 0.0

    def _rate(self, ended: bool) -> str:
        worked, seconds = self._done - self._before, time.monotonic() - self._began
        if worked <= 0 or seconds <= 0:
            return ""
        rate = f", {worked / seconds:.2g} {self._unit}/s"
        if self._slices:
            rate += f", {self._slices / seconds:.3g} slices/s"
        left = (self._total - self._done) * seconds / worked
        return rate if ended or not left else f"{rate}, about {left:.0f} s left"


def log_event(event: Event) -> None:
    """Write one event to the log named ``rfss``; cases are named by their ids alone."""
    told = event_fields(event)
    match event:
        case RunStarted(flow, dataset, preset, executor, version):
            log.info(
                "%s begins: data set %s, preset %s, executor %s, RFSS %s", flow, dataset, preset, executor, version,
                extra=told,
            )  # fmt: skip
        case StageStarted(stage, total, done, unit):
            log.info("%s: %d %s, %d of them done before", stage, total, unit, done, extra=told)
        case ChunkFinished(stage, chunk, slices, read_s, compute_s, write_s):
            log.debug(
                "%s %s: %d slices, read %.2f s, compute %.2f s, write %.2f s",
                stage, chunk, slices, read_s, compute_s, write_s, extra=told,
            )  # fmt: skip
        case ChunkRetried(stage, chunk, attempt, reason, message):
            log.warning(
                "%s %s: attempt %d failed (%s), tried again: %s", stage, chunk, attempt, reason, message, extra=told
            )
        case ChunkFailed(stage, chunk, reason, message):
            log.error("%s %s failed (%s): %s", stage, chunk, reason, message, extra=told)
        case CaseQuarantined(_, reason, _, case_id):
            # The name and the message may tell a patient's name; who may read the workspace reads them there.
            log.warning("set aside case %s (%s); `rfss status` says why", case_id, reason, extra=told)
        case StageFinished(stage, seconds, note):
            log.info("%s: finished in %.1f s%s", stage, seconds, f", {note}" if note else "", extra=told)
        case QualityMeasured(dice, _, decisions):
            listed = ", ".join(f"{count} {decision}" for decision, count in decisions.items() if count)
            mean = dice.get("mean")
            shown = "not measured" if mean is None else f"{mean:.3f}"
            log.info("held-out mean Dice %s%s", shown, f"; cases: {listed}" if listed else "", extra=told)
        case DriftMeasured(_, _, alerts):
            log.log(logging.WARNING if alerts else logging.INFO, "drift: %d alerts", alerts, extra=told)
        case DatasetRegistered(dataset, version, status):
            log.info("data set %s version %s: %s", dataset, version, status, extra=told)
        case RunEnded(state, seconds):
            log.info("run %s after %.1f s", state, seconds, extra=told)
        case _:
            pass

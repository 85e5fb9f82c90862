"""One run: what its stages share in the driver's process, and the loop that takes chunks through an executor."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar, cast

from prefect.cache_policies import NO_CACHE

from rfss_core.errors import ExecutionError
from rfss_core.events import (
    CaseQuarantined,
    ChunkFailed,
    ChunkFinished,
    ChunkRetried,
    EventStream,
    StageFinished,
    StageStarted,
)
from rfss_core.imaging import Quarantined, open_pseudonyms
from rfss_core.settings import LabelSettings
from rfss_core.store import Workspace
from tasks.executor import Executor
from tasks.isolation import Divisible, is_blamable, isolate
from tasks.log_context import log_fields
from tasks.retry import Retry, describe, reason_of
from tasks.throughput import Throughput
from tasks.worker import Failure

HOPELESS = 20
"""So many chunks that fail before any succeeds: the others are not tried, for the fault is in none of them."""

log = logging.getLogger("rfss")

# A stage's records decide what is skipped; Prefect's cache would not notice a deleted output.
STAGE_TASK: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


@dataclass(frozen=True)
class ChunkReport:
    """What a worker tells the driver about one finished unit of work; the data itself is in the workspace."""

    chunk: str
    slices: int
    read_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    quarantined: tuple[Quarantined, ...] = ()
    """Cases that were set aside on the way."""


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Unit = TypeVar("Unit", bound=_HasId)


class Run:
    """One labelling or evaluation run.

    A plain class: Prefect looks into dataclasses that are passed to tasks, and would rebuild this one.

    Args:
        settings: the run's settings.
        workspace: where it works.
        executor: where its chunks run.
        events: the one stream of events.
    """

    def __init__(self, settings: LabelSettings, workspace: Workspace, executor: Executor, events: EventStream) -> None:
        self.id = uuid.uuid4().hex[:12]
        """Names this one run in logs and metrics."""
        self.settings = settings
        self.workspace = workspace
        self.executor = executor
        self.events = events
        self.seconds: dict[str, float] = {}
        """Wall seconds of each finished stage."""
        self.throughput = Throughput()
        """Figures of each stage."""
        events.subscribe(self.throughput)
        self.pseudonyms = open_pseudonyms(settings.privacy, workspace=workspace.files.root)
        """Of cases and patients; None with plain names."""

    def stage(self, name: str) -> Stage:
        """Open a stage; use it as a context manager."""
        return Stage(self, name)


class Stage:
    """A stage of a run: times itself and tells the event stream what happens."""

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self.name = name
        self.note = ""
        self._log = log_fields(stage=name)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._log.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        self._run.seconds[self.name] = self._run.seconds.get(self.name, 0.0) + seconds
        try:
            if kind is None:
                self._run.events.emit(StageFinished(self.name, seconds, self.note))
        finally:
            self._log.__exit__(None, None, None)

    def started(self, total: int, done: int = 0, unit: str = "chunks") -> None:
        """Announce how much work the stage holds."""
        self._run.events.emit(StageStarted(self.name, total, done, unit))

    def finished(self, report: ChunkReport) -> None:
        """Announce one finished unit of work and what it set aside."""
        for case in report.quarantined:
            self._run.events.emit(CaseQuarantined(case.name, case.reason, case.message, case.case_id))
        self._run.events.emit(
            ChunkFinished(self.name, report.chunk, report.slices, report.read_s, report.compute_s, report.write_s)
        )

    def run_chunks(
        self,
        function: Callable[[Unit], ChunkReport],
        units: Sequence[Unit],
        *,
        done: int = 0,
        unit: str = "chunks",
        isolating: bool = False,
    ) -> list[ChunkReport]:
        """Take units of work through the executor.

        Args:
            function: picklable; does one unit and records it in the workspace.
            units: what is left to do.
            done: how many units were found done, for the progress figures.
            unit: what is counted.
            isolating: units are :class:`tasks.isolation.Divisible`, and ``function`` honours it: where a unit fails,
                the cases that do it are set aside and the others done.

        Returns:
            The reports, in order of completion.

        Raises:
            ExecutionError: a unit failed for good, and no case of it is to blame; raised after all others have ended.
        """
        self.started(len(units) + done, done, unit)
        reports: list[ChunkReport] = []
        failed: list[tuple[Unit, Failure]] = []
        for item, outcome in self._run.executor.map(function, units, stage=self.name, noted=self._retried):
            if isinstance(outcome, Failure):
                failed.append((item, outcome))
                if len(failed) >= HOPELESS and not reports and not done:
                    break
            else:
                reports.append(outcome)
                self.finished(outcome)
        hopeless = len(failed) >= HOPELESS and not reports and not done
        failures: list[tuple[str, BaseException]] = []
        for item, failure in failed:
            report = self._without_culprits(function, item, failure) if isolating and not hopeless else failure
            if isinstance(report, Failure):
                failures.append((item.id, report.error))
                self._run.events.emit(ChunkFailed(self.name, item.id, reason_of(report.error), describe(report.error)))
                log.debug("%s %s: %s", self.name, item.id, report.trace)
            else:
                reports.append(report)
                self.finished(report)
        if failures:
            first, error = failures[0]
            raise ExecutionError(
                f"{len(failures)} of {len(units)} {unit} failed in stage {self.name}, {first}: {describe(error)}. "
                "What is finished is kept: mend the cause and start the same command again"
            ) from error
        return reports

    def _retried(self, item: _HasId, retry: Retry) -> None:
        self._run.events.emit(ChunkRetried(self.name, item.id, retry.attempt, retry.reason, retry.message))

    def _without_culprits(
        self, function: Callable[[Unit], ChunkReport], unit: Unit, failure: Failure
    ) -> ChunkReport | Failure:
        """Set aside the cases that a failed unit fails on and do the others, or return why that cannot be."""
        if not isinstance(unit, Divisible) or not is_blamable(failure.error):
            return failure
        deaths = self._run.settings.execution.deaths

        def fails(part: Divisible, sure: bool) -> BaseException | None:
            [(_, outcome)] = self._run.executor.map(
                function, [cast("Unit", part)], stage=self.name, alone=deaths if sure else 1
            )
            if not isinstance(outcome, Failure):
                return None
            if not is_blamable(outcome.error):
                raise outcome.error
            return outcome.error

        self._retried(unit, Retry(1, "isolated", f"looking for the case that does it: {describe(failure.error)}"))
        try:
            refusals = isolate(unit, failure.error, fails, lambda case_id: self._run.workspace.case(case_id).n_slices)
        except Exception as error:  # noqa: BLE001 - storage that went away meanwhile, say
            return Failure(error)
        rest = unit.without(refusals)
        [(_, outcome)] = self._run.executor.map(function, [rest], stage=self.name, alone=deaths)
        return outcome

"""How far a run is: ``state.json`` in the workspace, written by the driver from the event stream, and the lease."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, computed_field

from rfss_core.errors import InputNotFoundError
from rfss_core.events import CaseQuarantined, ChunkFailed, ChunkFinished, Event, StageFinished, StageStarted
from rfss_core.store import Workspace
from rfss_core.store.lease import life
from tasks.run import Run

STATE = "state.json"
INTERVAL_S = 1.0
FAILURES_KEPT = 100

State = Literal["running", "finished", "failed", "stopped", "died"]


class StageStatus(BaseModel):
    """One stage's progress."""

    name: str
    done: int
    """Units that are done, in this run or before."""
    total: int
    unit: str
    failed: int = 0
    found: int = 0
    """Units of ``done`` that an earlier run did."""
    slices: int = 0
    """Slices of the units that this run did."""
    seconds: float = 0.0
    """Since the stage began, up to the last news of it."""
    finished: bool = False

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rate(self) -> float | None:
        """Units a second of this run; None before the first."""
        fresh = self.done - self.found + self.failed
        return fresh / self.seconds if fresh > 0 and self.seconds > 0 else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def left_s(self) -> float | None:
        """Seconds left at this rate; None where nobody knows."""
        if self.finished:
            return 0.0
        left = self.total - self.done - self.failed
        return None if self.rate is None else left / self.rate


class Failed(BaseModel):
    """One unit that failed for good."""

    stage: str
    chunk: str
    reason: str
    message: str


class Owner(BaseModel):
    """The run that has, or last had, the workspace."""

    command: str
    host: str
    pid: int
    since: str


class Status(BaseModel):
    """A run's progress."""

    workspace: str
    state: State
    """``died``: no sign of life is left, and nobody said how it ended; the same command goes on where it stopped."""
    owner: Owner | None = None
    stages: list[StageStatus] = Field(default_factory=list)
    failures: list[Failed] = Field(default_factory=list)
    """The first hundred."""
    quarantined: list[tuple[str, str, str]] = Field(default_factory=list)
    """(name, reason, message)."""


class RunState:
    """Listener that keeps ``state.json`` up to date, at most once a second."""

    def __init__(self, workspace: Workspace, url: str) -> None:
        self._workspace = workspace
        self._status = Status(workspace=url, state="running")
        self._written = 0.0
        self._began = time.monotonic()

    @classmethod
    def begin(cls, run: Run) -> RunState:
        """Start a run's state."""
        state = cls(run.workspace, run.settings.workspace)
        state._write(force=True)
        return state

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        stages = self._status.stages
        match event:
            case StageStarted(stage, total, done, unit):
                self._began = time.monotonic()
                stages.append(StageStatus(name=stage, done=done, total=total, unit=unit, found=done))
            case ChunkFinished():
                stages[-1].done += 1
                stages[-1].slices += event.slices
            case ChunkFailed(stage, chunk, reason, message):
                stages[-1].failed += 1
                if len(self._status.failures) < FAILURES_KEPT:
                    self._status.failures.append(Failed(stage=stage, chunk=chunk, reason=reason, message=message))
            case CaseQuarantined(name, reason, message):
                self._status.quarantined.append((name, reason, message))
            case StageFinished(stage) if stages and stages[-1].name == stage:
                stages[-1].finished = True
            case _:
                pass
        if stages and not (stages[-1].finished and not isinstance(event, StageFinished)):
            stages[-1].seconds = round(time.monotonic() - self._began, 3)
        self._write(force=isinstance(event, StageStarted | StageFinished))

    def end(self, state: Literal["finished", "failed", "stopped"]) -> None:
        """Note how the run ended."""
        self._status.state = state
        self._write(force=True)

    def _write(self, *, force: bool) -> None:
        if force or time.monotonic() - self._written >= INTERVAL_S:
            self._workspace.files.write_bytes(STATE, self._status.model_dump_json(indent=1).encode())
            self._written = time.monotonic()


def read_status(url: str | Path, *, waiting: Callable[[str], None] | None = None) -> Status:
    """Read a workspace's state and find out whether its run still lives.

    Where the run belongs to another machine, its heartbeat is watched: for a few seconds while it lives, for as long as
    its lease is valid where it died.

    Args:
        url: folder or URL of the workspace.
        waiting: is told in a sentence that a dead looking run is being watched.

    Raises:
        InputNotFoundError: the folder is no workspace, or no run has begun in it.
    """
    files = Workspace.open(str(url), create=False).files
    data = files.read_many([STATE]).get(STATE)
    held = life(files, waiting=waiting)
    if data is None and held is None:
        raise InputNotFoundError(f"no run has begun in workspace '{url}'; start one with `rfss label`")
    if held is not None and held[1] == "ended":
        # The run may have gone on, and ended, while its heartbeat was watched.
        data = files.read_many([STATE]).get(STATE)
    status = Status(workspace=str(url), state="running") if data is None else Status.model_validate_json(data)
    if held is None:
        status.state = "died" if status.state == "running" else status.state
        return status
    lease, how = held
    status.owner = Owner(command=lease.command, host=lease.host, pid=lease.pid, since=lease.since)
    if how == "ended":
        status.state = lease.ended or status.state
    else:
        status.state = "running" if how == "alive" else "died"
    return status

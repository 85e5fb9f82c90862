"""How far a run is: ``state.json`` in the workspace, written by the driver from the event stream."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from rfss_core.errors import InputNotFoundError
from rfss_core.events import CaseQuarantined, ChunkFailed, ChunkFinished, Event, StageFinished, StageStarted
from rfss_core.store import Workspace
from tasks.run import Run

STATE = "state.json"
INTERVAL_S = 1.0


class StageStatus(BaseModel):
    """One stage's progress."""

    name: str
    done: int
    total: int
    unit: str
    failed: int = 0


class Status(BaseModel):
    """A run's progress."""

    workspace: str
    state: Literal["running", "finished", "failed", "stopped"]
    stages: list[StageStatus] = Field(default_factory=list)
    quarantined: list[tuple[str, str, str]] = Field(default_factory=list)
    """(name, reason, message)."""


class RunState:
    """Listener that keeps ``state.json`` up to date, at most once a second."""

    def __init__(self, workspace: Workspace, url: str) -> None:
        self._workspace = workspace
        self._status = Status(workspace=url, state="running")
        self._written = 0.0

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
                stages.append(StageStatus(name=stage, done=done, total=total, unit=unit))
            case ChunkFinished():
                stages[-1].done += 1
            case ChunkFailed():
                stages[-1].failed += 1
            case CaseQuarantined(name, reason, message):
                self._status.quarantined.append((name, reason, message))
            case _:
                pass
        self._write(force=isinstance(event, StageStarted | StageFinished))

    def end(self, state: Literal["finished", "failed", "stopped"]) -> None:
        """Note how the run ended."""
        self._status.state = state
        self._write(force=True)

    def _write(self, *, force: bool) -> None:
        if force or time.monotonic() - self._written >= INTERVAL_S:
            self._workspace.files.write_bytes(STATE, self._status.model_dump_json(indent=1).encode())
            self._written = time.monotonic()


def read_status(url: str | Path) -> Status:
    """Read a workspace's state.

    Raises:
        InputNotFoundError: the folder is no workspace, or no run has begun in it.
    """
    workspace = Workspace.open(str(url), create=False)
    if not workspace.files.exists(STATE):
        raise InputNotFoundError(f"no run has begun in workspace '{url}'; start one with `rfss label`")
    return Status.model_validate_json(workspace.files.read_bytes(STATE))

"""Status: what a run says about itself while it goes on, and what its lease says once it does not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import main
from rfss_core.errors import InputNotFoundError
from rfss_core.events import ChunkFailed, ChunkFinished, StageFinished, StageStarted
from rfss_core.store import Workspace
from rfss_core.store.lease import take
from tasks.status import RunState, read_status

DIES = """
import os, sys
from rfss_core.store import Workspace
from rfss_core.store.lease import take
from rfss_core.events import StageStarted
from tasks.status import RunState
workspace = Workspace.open(sys.argv[1])
with take(workspace.files, 30.0, "rfss label there"):
    state = RunState(workspace, sys.argv[1])
    state(StageStarted("embed", 5, 2))
    os.kill(os.getpid(), 9)
"""


def test_a_run_in_progress_shows_rate_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(tmp_path)
    with pytest.raises(InputNotFoundError, match="no run has begun"):
        read_status(tmp_path)
    with take(workspace.files, 30.0, "rfss label here"):
        state = RunState(workspace, str(tmp_path))
        for event in (
            StageStarted("ingest", 4, 0, "cases"),
            *(ChunkFinished("ingest", f"c{n}", 3, 0.0, 0.0, 0.0) for n in range(4)),
            StageFinished("ingest", 1.0),
            StageStarted("embed", 10, 4),
            *(ChunkFinished("embed", f"c{n}", 60, 0.1, 0.2, 0.1) for n in range(2)),
            ChunkFailed("embed", "c7", "storage", "it broke"),
        ):
            state(event)
            time.sleep(0.005)
        state._write(force=True)
        status = read_status(tmp_path)
        ingest, embed = status.stages
        assert (status.state, status.owner and status.owner.command) == ("running", "rfss label here")
        assert (ingest.finished, ingest.left_s, embed.finished) == (True, 0, False)
        assert (embed.done, embed.total, embed.failed, embed.found, embed.slices) == (6, 10, 1, 4, 120)
        assert embed.rate == pytest.approx(3 / embed.seconds)
        assert embed.left_s == pytest.approx(3 / embed.rate)
        assert [failed.chunk for failed in status.failures] == ["c7"]
        with pytest.raises(SystemExit) as ended:
            main(["status", str(tmp_path), "--json"])
        assert ended.value.code == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["state"] == "running"
        assert printed["stages"][1]["left_s"] == pytest.approx(embed.left_s)
    # The lease knows how it ended, even where the last state was never written.
    assert read_status(tmp_path).state == "finished"


def test_a_killed_run_died(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    status = read_status(tmp_path)
    assert (status.state, [stage.done for stage in status.stages]) == ("died", [2])
    with pytest.raises(SystemExit):
        main(["status", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "died" in shown
    assert "start the same command again" in shown

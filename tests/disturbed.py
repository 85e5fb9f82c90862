"""Real labelling commands that tests kill: start, wait for a moment of their progress, kill, compare the outcome."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

POLL_S = 0.02
LONGEST_S = 900.0
"""A command that takes longer on the small cohort hangs, on a machine ever so busy."""

STAGES = ("start", "ingest", "embed", "index", "segment", "assess", "quality", "publish", "register")
"""The stages as ``state.json`` names them; "start" is all that comes before the first."""

STARTED: list[psutil.Popen] = []
"""Commands that this process has started; a test that fails must not leave them running."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves to its users, byte for byte."""

    fingerprint: str
    digest: str
    files: dict[str, str]
    """sha256 of each published file."""


@dataclass
class Labelling:
    """One ``rfss label`` command line on a workspace of its own, started as often as it takes."""

    cohort: Path
    workspace: Path
    options: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Return the command line without the program's name."""
        images, labels = str(self.cohort / "images"), str(self.cohort / "labels")
        return ["label", images, "--labels", labels, "--workspace", str(self.workspace), *self.options]

    def start(self) -> Attempt:
        """Start the command, as a user in a terminal does: in a process group of its own."""
        command = [sys.executable, "-m", "flows.cli", *self.arguments()]
        state = self.workspace / "state.json"
        before = state.stat().st_mtime_ns if state.exists() else 0
        shown = self.workspace.with_suffix(".txt")
        with shown.open("w") as out:
            process = psutil.Popen(
                command,
                env={**os.environ, **self.environment},
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=_as_in_a_terminal,
            )
        STARTED.append(process)
        return Attempt(process, state, before, shown)

    def finish(self) -> Outcome:
        """Start the command once more and let it end."""
        attempt = self.start()
        assert attempt.ended() == 0, attempt.shown()
        return self.outcome()

    def outcome(self) -> Outcome:
        summary = json.loads((self.workspace / "summary.json").read_text())
        folder = self.workspace / "pseudo_labels"
        files = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        assert any(name.endswith(".nii.gz") for name in files)
        return Outcome(summary["fingerprint"], summary["dataset"]["digest"], files)


def _as_in_a_terminal() -> None:
    # Whatever a shell starts in the background ignores Ctrl-C, and hands that on to its children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Attempt:
    """One process of the command, watched from outside."""

    process: psutil.Popen
    state: Path
    before: int
    text: Path
    began: float = field(default_factory=time.monotonic)

    def reached(self) -> str:
        """Return the stage that the run is in."""
        with suppress(OSError, ValueError, IndexError):
            if self.state.stat().st_mtime_ns != self.before:
                return str(json.loads(self.state.read_text())["stages"][-1]["name"])
        return STAGES[0]

    def running(self) -> bool:
        assert time.monotonic() - self.began < LONGEST_S, f"hangs in stage {self.reached()}: {self.shown()}"
        return self.process.poll() is None

    def wait_until(self, stage: str) -> bool:
        """Wait until the run is in a stage or beyond it; False where it ended before."""
        while STAGES.index(self.reached()) < STAGES.index(stage):
            if not self.running():
                return False
            time.sleep(POLL_S)
        return self.running()

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        while self.running():
            time.sleep(POLL_S)
        return int(self.process.returncode)

    def shown(self) -> str:
        """Return what the command has shown in the terminal."""
        return self.text.read_text()

    def family(self) -> list[psutil.Process]:
        """Return the processes that the command has started, and theirs."""
        with suppress(psutil.NoSuchProcess):
            return list(self.process.children(recursive=True))
        return []

    def kill(self) -> None:
        """Kill the command's own process, and none that it started."""
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> None:
        """Press Ctrl-C: the whole process group gets it."""
        os.killpg(self.process.pid, signal.SIGINT)


def workers_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those processes that are Dask workers under a nanny."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
    return found


def survivors(processes: list[psutil.Process], patience_s: float) -> list[str]:
    """Return the command lines of those that are still alive after a while; none are left alive."""
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    lines = []
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            lines.append(" ".join(process.cmdline()))
            process.kill()
    return lines


@dataclass(frozen=True)
class Moment:
    """When to kill: a share of a stage's undisturbed duration after it began."""

    stage: str
    seconds: float

    def come(self, attempt: Attempt) -> bool:
        """Wait for the moment; False where the run ended before it."""
        if not attempt.wait_until(self.stage):
            return False
        until = time.monotonic() + self.seconds
        while time.monotonic() < until and attempt.running():
            time.sleep(POLL_S)
        return attempt.running()


def timeline(attempt: Attempt) -> dict[str, float]:
    """Watch an undisturbed run to its end; return each stage's seconds."""
    seconds = dict.fromkeys(STAGES, 0.0)
    last = time.monotonic()
    while attempt.running():
        now = time.monotonic()
        seconds[attempt.reached()] += now - last
        last = now
        time.sleep(POLL_S)
    assert attempt.process.returncode == 0, attempt.shown()
    return seconds


def draw_moments(seconds: dict[str, float], count: int, random: np.random.Generator) -> list[Moment]:
    """Draw moments in the run's order, evenly over its stages and uniformly within each."""
    stages = [STAGES[number % len(STAGES)] for number in random.permutation(max(count, len(STAGES)))[:count]]
    ordered = sorted(stages, key=STAGES.index)
    return [Moment(stage, float(random.uniform(0, seconds[stage]))) for stage in ordered]


class Cluster:
    """A Dask scheduler and its workers as an administrator starts them: ``dask scheduler`` and ``dask worker``.

    Args:
        folder: for the workers' files and what both say.
        workers: number of worker processes.
        protocol: ``tcp``, or ``tls`` with certificates of the environment.
    """

    def __init__(self, folder: Path, workers: int, protocol: str = "tcp") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._workers = workers
        self._port = free_port()
        self._protocol = protocol
        self.address = f"{protocol}://127.0.0.1:{self._port}"
        self.parts: dict[str, psutil.Popen] = {}

    def ensure(self) -> None:
        """Start what is not running."""
        scheduler = self.parts.get("scheduler")
        if scheduler is None or scheduler.poll() is not None:
            self.stop()
            options = ["--protocol", self._protocol, "--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard"]
            self._start("scheduler", "distributed.cli.dask_scheduler", *options)
        worker = self.parts.get("workers")
        if worker is None or worker.poll() is not None:
            options = ["--nworkers", str(self._workers), "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
            place = ["--local-directory", str(self._folder)]
            self._start("workers", "distributed.cli.dask_worker", self.address, *options, *place)

    def _start(self, name: str, module: str, *options: str) -> None:
        with (self._folder / f"{name}.txt").open("a") as out:
            self.parts[name] = psutil.Popen(
                [sys.executable, "-m", module, *options], stdout=out, stderr=out, start_new_session=True
            )

    def processes(self) -> list[psutil.Process]:
        """Return the workers' processes and their parents."""
        found: list[psutil.Process] = []
        for part in self.parts.values():
            with suppress(psutil.NoSuchProcess):
                found += [part, *part.children(recursive=True)]
        return found

    def stop(self) -> None:
        processes = self.processes()
        survivors(processes, 0)
        for part in self.parts.values():
            # One that nobody waits for is a ResourceWarning when it is collected.
            part.wait(LONGEST_S)
        self.parts.clear()


@contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Keep a cluster for a test."""
    cluster = Cluster(folder, workers)
    cluster.ensure()
    try:
        yield cluster
    finally:
        cluster.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

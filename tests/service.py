"""A real ``rfss serve`` for tests, what a client of its Prefect API does, and Prefect servers that end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.service.processes import prefect_answers
from rfss_core.events import Event, StageFinished
from tasks import progress

PATIENCE_S = 600.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceUnderTest:
    """The command's process and its API."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.port, self.mlflow_port = free_port(), free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.ui = f"http://127.0.0.1:{self.port}"
        self.arguments = [
            "serve", "--home", str(home), "--port", str(self.port), "--mlflow-port", str(self.mlflow_port), *options
        ]  # fmt: skip
        self.output = home.parent / "serve.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", *self.arguments], stdout=log, stderr=log, env=clean_environment()
            )

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def until_ready(self) -> None:
        until(lambda: "ready after" in self.said or self.process.poll() is not None, "the service is ready")
        assert self.process.poll() is None, self.said

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def request(self, method: str, path: str, **body: Any) -> httpx.Response:
        for _ in range(10):
            answer = httpx.request(
                method, f"{self.api}{path}", timeout=60, trust_env=False, **({"json": body} if body else {})
            )
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            # A sqlite that was busy for too long; Prefect's own client tries again, too.
            time.sleep(1)
        return answer

    def call(self, method: str, path: str, **body: Any) -> Any:
        answer = self.request(method, path, **body)
        assert answer.is_success, f"{answer.status_code}: {answer.text}"
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/deployments/name/{name}"))

    def start(self, name: str, settings: dict[str, Any]) -> httpx.Response:
        """Start a run as the UI's form does."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.request("POST", path, parameters={"settings": settings})

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/flow_runs/{run_id}"))

    def ended(self, run_id: str) -> dict[str, Any]:
        until(lambda: self.run(run_id)["state_type"] in ENDED, f"run {run_id} ends")
        return self.run(run_id)

    def runs_of(self, name: str, *states: str) -> list[dict[str, Any]]:
        found = self.call("POST", "/flow_runs/filter", deployments={"id": {"any_": [self.deployment(name)["id"]]}})
        return [run for run in found if run["state_type"] in states]

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        found = self.call("POST", "/artifacts/filter", flow_runs={"id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found}

    def logs(self, run_id: str) -> str:
        found = self.call("POST", "/logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, limit=200)
        return "\n".join(line["message"] for line in found)


def clean_environment() -> dict[str, str]:
    """Return an environment that knows no server of this test session."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(
            ("PREFECT_API", "PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_SERVER", "MLFLOW_", "RFSS_HOME")
        )
    }


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.5)


@contextmanager
def serving(home: Path, *options: str) -> Iterator[ServiceUnderTest]:
    service = ServiceUnderTest(home, *options)
    try:
        service.until_ready()
        yield service
    finally:
        service.end()


@contextmanager
def prefect_server(home: Path, port: int) -> Iterator[str]:
    """A whole server, its scheduler and triggers included, with its database in a folder."""
    home.mkdir(exist_ok=True)
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    api = f"http://127.0.0.1:{port}/api"
    environment = {**clean_environment(), "PREFECT_HOME": str(home), "PREFECT_API_URL": api}
    # Events are written every five seconds; a run of this test is not much longer.
    environment["PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL"] = "0.2"
    with (home / "prefect.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=environment)
    try:
        until(lambda: prefect_answers(api), "the server answers")
        yield api
    finally:
        process.kill()
        process.wait()


@contextmanager
def dying_server(home: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """A server that commands of this process are told of, and that is killed when this stage has ended.

    Yields:
        Says whether it was.
    """
    with ExitStack() as server:
        url = server.enter_context(prefect_server(home, free_port()))
        plain, killed_after = progress.log_event, []

        def kill_in_time(event: Event) -> None:
            plain(event)
            if isinstance(event, StageFinished) and event.stage == stage:
                killed_after.append(event.stage)
                server.close()

        monkeypatch.setattr(progress, "log_event", kill_in_time)
        with temporary_settings({PREFECT_API_URL: url}):
            yield lambda: bool(killed_after)

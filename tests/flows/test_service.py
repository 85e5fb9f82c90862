"""``rfss serve``, end to end: a real Prefect server, a real MLflow server, served deployments, runs of the models."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from cohorts import write_cohort
from prefect.settings import PREFECT_API_URL, temporary_settings
from service import ServiceUnderTest, clean_environment, serving, until

from flows.service.automations import FILE, set_up
from tasks.events_out import PROMOTED, dataset_resource, send_event
from tasks.status import read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def asked(cohort: Path, workspace: Path, **changes: Any) -> dict[str, Any]:
    """Return a form filled in: the tiny models, few neighbours, a gate that anything passes."""
    return {
        "images": str(cohort / "images"),
        "labels": str(cohort / "labels"),
        "workspace": str(workspace),
        "k": 3,
        "held_out": 0.5,
        "dataset": "ellipses",
        "quality": {"min_dice": 0.0, "bootstrap": 200},
        **changes,
    }


class Hook:
    """A webhook that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("hearts"), patients=16, labelled=12)
    (folder / "images" / "torn.nii.gz").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, hearts: Path, hook: Hook) -> Iterator[ServiceUnderTest]:
    folder = tmp_path_factory.mktemp("service")
    nightly = folder / "nightly.yaml"
    nightly.write_text(yaml.safe_dump(asked(hearts, folder / "by-night")))
    options = ("--nightly", str(nightly), "--cron", "* * * * *", "--timezone", "Asia/Kathmandu", "--webhook", hook.url)
    with serving(folder / "home", *options) as found:
        yield found


def test_a_run_as_the_form_starts_it(service: ServiceUnderTest, hearts: Path, tmp_path: Path) -> None:
    answer = service.start("label-dataset/label-dataset", asked(hearts, tmp_path / "w"))
    assert answer.status_code == 201, answer.text
    run = service.ended(answer.json()["id"])
    assert run["state_name"] == "Completed with quarantine", run["state"]
    assert run["state"]["message"] == "1 case was set aside: truncated 1"
    artifacts = service.artifacts(run["id"])
    stages = {"ingest", "embed", "index", "segment", "assess", "quality", "publish", "register"}
    assert {f"rfss-{stage}" for stage in stages} <= set(artifacts)
    assert all(artifacts[f"rfss-{stage}"]["data"] == 100 for stage in stages)
    assert "slices/s" in artifacts["rfss-segment"]["description"]
    assert "sub-" not in str(artifacts), "cases are named"
    assert artifacts["rfss-overlays"]["data"].count("data:image/webp;base64,") == 3
    summary = artifacts["rfss-summary"]["data"]
    for name in ("[Report](", "[MLflow run]("):
        address = summary.split(name, 1)[1].split(")", 1)[0]
        page = httpx.get(address.split("#")[0], timeout=60, trust_env=False)
        assert page.is_success, address
        assert "<html" in page.text
    assert "segment: finished in" in service.logs(run["id"])


def test_bad_parameters_are_refused_before_a_run_starts(
    service: ServiceUnderTest, hearts: Path, tmp_path: Path
) -> None:
    for change, said in (
        ({"k": 0}, "0 is less than the minimum of 1"),
        ({"preset": "tinny"}, "'tinny' is not one of ['tiny', 'fast', 'paper', 'best']"),
        ({"kay": 3}, "'kay' was unexpected"),
    ):
        answer = service.start("label-dataset/label-dataset", asked(hearts, tmp_path / "w", **change))
        assert answer.status_code == 409, answer.text
        assert said in answer.text
    # What no schema can say is said by the run's state, before anything is read.
    contradiction = {"segmentation": {"segmenter": "label-fusion", "points": [1, 1]}}
    answer = service.start("label-dataset/label-dataset", asked(hearts, tmp_path / "w", **contradiction))
    run = service.ended(answer.json()["id"])
    assert run["state_type"] == "FAILED"
    assert "points belong to segmenter sam2-points, not to label-fusion" in run["state"]["message"]
    answer = service.start("label-dataset/label-dataset", asked(hearts, tmp_path / "w", images="/nowhere"))
    run = service.ended(answer.json()["id"])
    assert run["state_name"] == "Failed: not found"
    assert run["state"]["message"] == "images: '/nowhere' does not exist; check the path"
    assert not (tmp_path / "w" / "manifest").exists()


def test_a_failed_gate_names_the_state_and_tells_the_hook(
    service: ServiceUnderTest, hearts: Path, hook: Hook, tmp_path: Path
) -> None:
    strict = asked(hearts, tmp_path / "w", quality={"min_dice": 1.0, "bootstrap": 200}, dataset="strict")
    run = service.ended(service.start("label-dataset/label-dataset", strict).json()["id"])
    assert run["state_name"] == "Failed: gate"
    assert "mean Dice" in run["state"]["message"]
    until(lambda: any("strict failed its quality gate" in text for text in hook.told), "the hook is told")


def test_the_schedule_starts_one_run_at_a_time(service: ServiceUnderTest) -> None:
    until(lambda: service.runs_of("label-dataset/nightly", "COMPLETED"), "a scheduled run completes")
    run = service.runs_of("label-dataset/nightly", "COMPLETED")[0]
    assert run["auto_scheduled"]
    deployment = service.deployment("label-dataset/nightly")
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployment["schedules"][0]["schedule"]["timezone"] == "Asia/Kathmandu"
    # Missed runs: many are due at once, one is run.
    service.call("PATCH", f"/deployments/{deployment['id']}", schedules=[])
    until(lambda: not service.runs_of("label-dataset/nightly", "RUNNING", "PENDING"), "the last one ends")
    path = f"/deployments/{deployment['id']}/create_flow_run"
    ids = [service.call("POST", path, parameters={})["id"] for _ in range(3)]
    states = [service.ended(each)["state_type"] for each in ids]
    assert states.count("CANCELLED") >= 1, states
    assert "COMPLETED" in states


def test_a_cancelled_run_is_resumed_by_the_next(service: ServiceUnderTest, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "many", patients=60, labelled=12)
    settings = asked(cohort, tmp_path / "w")
    run_id = service.start("label-dataset/label-dataset", settings).json()["id"]
    records = tmp_path / "w" / "records" / "embed"
    until(lambda: records.is_dir() and any(records.rglob("*.json")), "some chunks are embedded")
    body = {"state": {"type": "CANCELLING"}}
    service.call("POST", f"/flow_runs/{run_id}/set_state", **body)
    assert service.ended(run_id)["state_type"] == "CANCELLED"
    kept = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    next_id = service.start("label-dataset/label-dataset", settings).json()["id"]
    assert service.ended(next_id)["state_type"] == "COMPLETED"
    assert read_status(str(tmp_path / "w")).state == "finished"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished chunks were done again"


def test_a_promotion_starts_the_student(service: ServiceUnderTest) -> None:
    name = "train-student/train-student"
    if find_spec("flows.train_student") is None:
        # The automation is what is tested here, not the flow.
        flow = service.call("POST", "/flows/", name="train-student")
        service.call("POST", "/deployments/", name="train-student", flow_id=flow["id"])
    with temporary_settings({PREFECT_API_URL: service.api}):
        assert any("trains the student" in line and "left out" not in line for line in set_up())
        told = {"name": "hearts", "version": "7", "tracking_uri": "sqlite:////nowhere.db"}
        assert send_event(PROMOTED, dataset_resource("hearts"), "hearts", told)
    states = ("SCHEDULED", "PENDING", "RUNNING", "FAILED")
    until(lambda: service.runs_of(name, *states), "the student's run is created")
    [run] = service.runs_of(name, *states)
    assert run["parameters"] == {"settings": {"dataset": "hearts/7", "registry": "sqlite:////nowhere.db"}}


def test_a_second_service_and_a_taken_port_are_one_line_each(service: ServiceUnderTest, tmp_path: Path) -> None:
    def serve(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "serve", *options],
            capture_output=True, text=True, timeout=120, check=False, env=clean_environment(),
        )  # fmt: skip

    again = serve("--home", str(service.home))
    assert again.returncode == 2
    assert f"another `rfss serve` (process {service.process.pid})" in again.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = serve("--home", str(tmp_path / "home"), "--port", port)
    assert taken.returncode == 2
    assert f"port {port} of 127.0.0.1 is taken by something that is no Prefect server" in taken.stderr
    assert serve("--home", str(service.home), "--check").returncode == 0
    for options, said in (
        (("--cron", "soon"), "'soon' is not a cron expression"),
        (("--timezone", "Mars/Olympus"), "time zone 'Mars/Olympus' is not known"),
        (("--host", "0.0.0.0"), "rfss secure"),
        (("--check",), "no service runs in"),
    ):
        refused = serve("--home", str(tmp_path / "home"), *options)
        assert refused.returncode == 2, refused.stderr
        assert said in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_it(number: int, tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path / "home")
    try:
        service.until_ready()
        family = service.family()
        assert len(family) >= 6
    finally:
        service.end(number)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    if number == signal.SIGINT:
        assert "stopped; databases and logs stay where they are" in service.said


def test_a_zombie_is_marked_as_crashed(service: ServiceUnderTest, tmp_path: Path) -> None:
    document = yaml.safe_load(FILE.read_text())
    [zombie] = [each for each in document["automations"] if "zombie" in each["name"]]
    zombie["name"], zombie["trigger"]["within"] = "sooner", 10
    file = tmp_path / "sooner.yaml"
    file.write_text(yaml.safe_dump({"automations": [zombie]}))
    flow = service.call("POST", "/flows/", name="zombies")
    running = {"type": "RUNNING", "name": "Running"}
    run_id = service.call("POST", "/flow_runs/", flow_id=flow["id"], state=running)["id"]
    with temporary_settings({PREFECT_API_URL: service.api}):
        assert set_up(file=file) == ["set up 'sooner'"]
        assert set_up(file=file) == ["brought up to date 'sooner'"]
        assert send_event("prefect.flow-run.heartbeat", f"prefect.flow-run.{run_id}", "zombie", {})
    assert service.ended(run_id)["state_type"] == "CRASHED"
    assert "No sign of life" in service.run(run_id)["state"]["message"]

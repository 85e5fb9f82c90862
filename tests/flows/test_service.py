"""``rfss serve``, end to end: a real Prefect server, a real MLflow server, served deployments, runs of the models."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings
from service import ENDED, ServiceUnderTest, clean_environment, serving, until

from flows.service import zombies
from flows.service.automations import FILE, set_up
from flows.service.zombies import HEARTBEAT
from tasks.events_out import send_event
from tasks.status import read_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def real_cohort(folder: Path, source: Path, images: int, labelled: int) -> Path:
    """Copy the first real images of a data set, and the labels of the first of them."""
    for kind, count in (("images", images), ("labels", labelled)):
        (folder / kind).mkdir()
        for path in sorted((source / kind).iterdir())[:count]:
            shutil.copy(path, folder / kind)
    return folder


def asked(cohort: Path, workspace: Path, **changes: Any) -> dict[str, Any]:
    """Return a form filled in: the tiny models, few neighbours, a gate that anything passes."""
    return {
        "images": str(cohort / "images"),
        "labels": str(cohort / "labels"),
        "workspace": str(workspace),
        "k": 3,
        "held_out": 0.5,
        "dataset": "heads",
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
def heads(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """Real ultrasound images of fetal heads, and one torn file."""
    folder = real_cohort(tmp_path_factory.mktemp("heads"), shared_data / "fetal-head", images=20, labelled=12)
    (folder / "images" / "torn.nii.gz").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """Real MRI of brains: several chunks."""
    return real_cohort(tmp_path_factory.mktemp("brains"), shared_data / "hippocampus", images=18, labelled=12)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, heads: Path, hook: Hook) -> Iterator[ServiceUnderTest]:
    folder = tmp_path_factory.mktemp("service")
    nightly = folder / "nightly.yaml"
    nightly.write_text(yaml.safe_dump(asked(heads, folder / "by-night")))
    options = ("--nightly", str(nightly), "--cron", "* * * * *", "--timezone", "Asia/Kathmandu", "--webhook", hook.url)
    with serving(folder / "home", *options) as found:
        yield found


def end_schedule(service: ServiceUnderTest) -> None:
    """A run every minute would take the processors of all other tests."""
    nightly = service.deployment("label-dataset/nightly")
    service.call("PATCH", f"/deployments/{nightly['id']}", schedules=[])
    until(lambda: not service.runs_of("label-dataset/nightly", "RUNNING", "PENDING"), "the last nightly run ends")


def test_the_schedule_starts_one_run_at_a_time(service: ServiceUnderTest) -> None:
    until(lambda: service.runs_of("label-dataset/nightly", "COMPLETED"), "a scheduled run completes")
    run = service.runs_of("label-dataset/nightly", "COMPLETED")[0]
    assert run["auto_scheduled"]
    deployment = service.deployment("label-dataset/nightly")
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployment["schedules"][0]["schedule"]["timezone"] == "Asia/Kathmandu"
    end_schedule(service)
    # Missed runs: many are due at once, one is run.
    path = f"/deployments/{deployment['id']}/create_flow_run"
    ids = [service.call("POST", path, parameters={})["id"] for _ in range(3)]
    states = [service.ended(each)["state_type"] for each in ids]
    assert states.count("CANCELLED") >= 1, states
    assert "COMPLETED" in states


def test_a_run_as_the_form_starts_it(service: ServiceUnderTest, heads: Path, tmp_path: Path) -> None:
    answer = service.start("label-dataset/label-dataset", asked(heads, tmp_path / "w"))
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


def test_bad_parameters_are_refused_before_a_run_starts(service: ServiceUnderTest, heads: Path, tmp_path: Path) -> None:
    for change, said in (
        ({"k": 0}, "0 is less than the minimum of 1"),
        ({"preset": "tinny"}, "'tinny' is not one of ['tiny', 'fast', 'paper', 'best']"),
        ({"kay": 3}, "'kay' was unexpected"),
    ):
        answer = service.start("label-dataset/label-dataset", asked(heads, tmp_path / "w", **change))
        assert answer.status_code == 409, answer.text
        assert said in answer.text
    # What no schema can say is said by the run's state, before anything is read.
    contradiction = {"segmentation": {"segmenter": "label-fusion", "points": [1, 1]}}
    answer = service.start("label-dataset/label-dataset", asked(heads, tmp_path / "w", **contradiction))
    run = service.ended(answer.json()["id"])
    assert run["state_type"] == "FAILED"
    assert "points belong to segmenter sam2-points, not to label-fusion" in run["state"]["message"]
    answer = service.start("label-dataset/label-dataset", asked(heads, tmp_path / "w", images="/nowhere"))
    run = service.ended(answer.json()["id"])
    assert run["state_name"] == "Failed: not found"
    assert run["state"]["message"] == "images: '/nowhere' does not exist; check the path"
    assert not (tmp_path / "w" / "manifest").exists()


def test_a_failed_gate_names_the_state_and_tells_the_hook(
    service: ServiceUnderTest, heads: Path, hook: Hook, tmp_path: Path
) -> None:
    strict = asked(heads, tmp_path / "w", quality={"min_dice": 1.0, "bootstrap": 200}, dataset="strict")
    run = service.ended(service.start("label-dataset/label-dataset", strict).json()["id"])
    assert run["state_name"] == "Failed: gate"
    assert "mean Dice" in run["state"]["message"]
    until(lambda: any("strict failed its quality gate" in text for text in hook.told), "the hook is told")


def test_drift_tells_the_hook(service: ServiceUnderTest, heads: Path, hook: Hook, tmp_path: Path) -> None:
    voting = {"segmentation": {"segmenter": "label-fusion"}, "alerts": {"dice_drop": 0.0}, "dataset": "drifting"}
    # From one method to another and back: once of the two the held-out Dice falls.
    for k in (1, 6, 1):
        answer = service.start("label-dataset/label-dataset", asked(heads, tmp_path / "w", k=k, **voting))
        assert service.ended(answer.json()["id"])["state_type"] == "COMPLETED"
    until(lambda: any("drifting drifts" in text for text in hook.told), "the hook is told")
    [told] = [text for text in hook.told if "drifting drifts" in text]
    assert "the mean held-out Dice fell from" in told


def test_a_cancelled_run_is_resumed_by_the_next(service: ServiceUnderTest, brains: Path, tmp_path: Path) -> None:
    settings = asked(brains, tmp_path / "w", dataset="brains")
    run_id = service.start("label-dataset/label-dataset", settings).json()["id"]
    records = tmp_path / "w" / "records" / "embed"
    until(lambda: records.is_dir() and any(records.rglob("*.json")), "some chunks are embedded")

    # Meanwhile another deployment has no business in this workspace.
    end_schedule(service)
    second = service.ended(service.start("label-dataset/nightly", settings).json()["id"])
    assert second["state_name"] == "Failed: workspace busy", second["state"]
    assert "is in use by" in second["state"]["message"]

    assert service.run(run_id)["state_type"] == "RUNNING"
    body = {"state": {"type": "CANCELLING"}}
    service.call("POST", f"/flow_runs/{run_id}/set_state", **body)
    assert service.ended(run_id)["state_type"] == "CANCELLED"
    kept = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    assert read_status(str(tmp_path / "w")).state == "stopped"
    next_id = service.start("label-dataset/label-dataset", settings).json()["id"]
    assert service.ended(next_id)["state_type"] == "COMPLETED"
    assert read_status(str(tmp_path / "w")).state == "finished"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished chunks were done again"


def test_a_promotion_trains_the_student(service: ServiceUnderTest, brains: Path, tmp_path: Path) -> None:
    name = "train-student/train-student"
    settings = asked(
        brains,
        tmp_path / "w",
        dataset="brains-to-learn",
        segmentation={"segmenter": "label-fusion"},
        quality={"min_dice": 0.0, "accept_dice": 0.0, "reject_dice": 0.0, "bootstrap": 200},
        promotion={"policy": "always"},
    )
    run = service.ended(service.start("label-dataset/label-dataset", settings).json()["id"])
    assert run["state_type"] == "COMPLETED", run["state"]
    until(lambda: service.runs_of(name, "SCHEDULED", "PENDING", "RUNNING", *ENDED), "the student's run is created")
    [student] = service.runs_of(name, "SCHEDULED", "PENDING", "RUNNING", *ENDED)
    registry = f"http://127.0.0.1:{service.mlflow_port}"
    assert student["parameters"] == {"settings": {"dataset": "brains-to-learn/1", "registry": registry}}
    ended = service.ended(student["id"])
    assert ended["state_type"] == "COMPLETED", ended["state"]
    artifacts = service.artifacts(student["id"])
    assert "data set brains-to-learn/1" in artifacts["rfss-student"]["data"]
    assert [row["class"] for row in json.loads(artifacts["rfss-student-test"]["data"])][-1] == "mean"


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


def test_it_stops_in_order(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path / "home")
    try:
        service.until_ready()
        family = service.family()
        assert len(family) >= 6
    finally:
        service.end(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert "stopped; databases and logs stay where they are" in service.said


def test_nothing_outlives_a_kill_and_its_run_is_crashed_and_goes_on(brains: Path, tmp_path: Path) -> None:
    name, settings = "label-dataset/label-dataset", asked(brains, tmp_path / "w", dataset="brains")
    records = tmp_path / "w" / "records" / "embed"
    killed = ServiceUnderTest(tmp_path / "home")
    try:
        killed.until_ready()
        run_id = killed.start(name, settings).json()["id"]
        until(lambda: records.is_dir() and any(records.rglob("*.json")), "some chunks are embedded")
        family = killed.family()
    finally:
        killed.end(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    assert read_status(str(tmp_path / "w")).state == "died"
    kept = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    with serving(tmp_path / "home") as service:
        # By the automation as it is shipped, of a run whose heartbeat stopped.
        run = service.ended(run_id)
        assert run["state_type"] == "CRASHED"
        assert "No sign of life for 90 seconds" in run["state"]["message"]
        again = service.start(name, settings).json()["id"]
        assert service.ended(again)["state_type"] == "COMPLETED"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished chunks were done again"


def test_an_automation_that_is_set_up_anew_marks_a_zombie(
    service: ServiceUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(FILE.read_text())
    silent_ones = [each for each in document["automations"] if each["trigger"]["posture"] == "Proactive"]
    assert len(silent_ones) == 2
    file = tmp_path / "sooner.yaml"

    def wait_at_most(seconds: int) -> None:
        for number, each in enumerate(silent_ones):
            each["name"], each["trigger"]["within"] = f"sooner {number}", seconds
        file.write_text(yaml.safe_dump({"automations": silent_ones}))

    flow = service.call("POST", "/flows/", name="zombies")
    running = {"type": "RUNNING", "name": "Running"}
    dead, silent = (service.call("POST", "/flow_runs/", flow_id=flow["id"], state=running)["id"] for _ in range(2))
    # As a runner leaves it that is killed while it starts a run's process.
    served = service.deployment("label-dataset/label-dataset")
    starting = {"flow_id": served["flow_id"], "deployment_id": served["id"], "state": {"type": "PENDING"}}
    monkeypatch.setattr(zombies, "START", timedelta(seconds=20))
    old = service.call("POST", "/flow_runs/", **starting)["id"]
    cancelled = service.call("POST", "/flow_runs/", flow_id=flow["id"], state=running, tags=["rfss"])["id"]
    service.call("POST", f"/flow_runs/{cancelled}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    wait_at_most(600)
    with temporary_settings({PREFECT_API_URL: service.api}):
        assert set_up(file=file)[:2] == ["set up 'sooner 0'", "set up 'sooner 1'"]
        assert send_event(HEARTBEAT, f"prefect.flow-run.{dead}", "zombie", {})
        said = "runs at work: 3; whichever stays silent is marked as crashed, or as cancelled"
        until(lambda: said in set_up(file=file), "all are seen")
        assert set_up(file=file)[:2] == ["up to date 'sooner 0'", "up to date 'sooner 1'"]
        fresh = service.call("POST", "/flow_runs/", **starting)["id"]
        wait_at_most(10)
        # Prefect forgets whom it waits for.
        assert set_up(file=file)[:2] == ["brought up to date 'sooner 0'", "brought up to date 'sooner 1'"]
    for zombie_id in (dead, old):
        assert service.ended(zombie_id)["state_type"] == "CRASHED"
        assert "No sign of life" in service.run(zombie_id)["state"]["message"]
    assert service.ended(cancelled)["state_type"] == "CANCELLED"
    assert "was gone already" in service.run(cancelled)["state"]["message"]
    assert service.run(silent)["state_type"] == "RUNNING", "a run that never sent heartbeats is not watched"
    assert service.run(fresh)["state_type"] == "PENDING", "a process takes its time to start"

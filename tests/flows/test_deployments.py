"""deployments/prefect.yaml and the pools: what `rfss serve` offers, accepted by a real server, run by a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cohorts import VOTE, settings_for
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from flows.service.deployments import ONE_AT_A_TIME, SERVED, Nightly
from tasks.summary import read_summary

ROOT = Path(__file__).resolve().parents[2]
POOLS = ROOT / "deployments" / "pools"
WRITTEN: dict[str, Any] = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
LOCAL = {"executor": "local", "workers": 1}


def prefect(*arguments: str, cwd: Path = ROOT) -> str:
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=cwd, env={**os.environ, "PREFECT_API_URL": api, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_file_and_the_service_offer_the_same() -> None:
    written = {each["name"]: each for each in WRITTEN["deployments"]}
    served = {each.name: each for each in SERVED}
    assert written.keys() == served.keys()
    assert len(WRITTEN["deployments"]) == len(served)
    for name, each in served.items():
        entry = written[name]
        assert entry["entrypoint"] == f"{each.module}.{each.flow}"
        assert entry["description"] == each.description
        assert bool(entry.get("schedules")) == each.scheduled
        assert entry.get("concurrency_limit") == (
            {"limit": ONE_AT_A_TIME.limit, "collision_strategy": str(ONE_AT_A_TIME.collision_strategy.value)}
            if each.scheduled
            else None
        )
    [schedule] = written["nightly"]["schedules"]
    assert (schedule["cron"], schedule["timezone"]) == (Nightly().cron, Nightly().timezone)


@pytest.fixture(scope="module")
def deployed(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The deployments on the session's server, as docs/deploy-process.md puts them there."""
    pool = ("work-pool", "create", "rfss", "--type", "process", "--overwrite")
    prefect(*pool, "--base-job-template", str(POOLS / "process.json"))
    prefect("variable", "set", "rfss_execution", json.dumps(LOCAL), "--overwrite")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    prefect("deploy", "--all", "--prefect-file", str(ROOT / "deployments" / "prefect.yaml"), cwd=elsewhere)
    elsewhere.rmdir()


def test_deployments_reach_the_server_with_a_form_that_explains_itself(deployed: None) -> None:
    with get_client(sync_client=True) as client:
        found = {each.name: client.read_deployment_by_name(f"{each.load().name}/{each.name}") for each in SERVED}
    assert {each.work_pool_name for each in found.values()} == {"rfss"}
    # A folder of the machine that deployed would not be there where the run is.
    assert not any(each.pull_steps for each in found.values())
    for name in ("label-dataset", "nightly", "evaluate"):
        assert found[name].parameters == {"settings": {"execution": LOCAL}}
    label, nightly = found["label-dataset"], found["nightly"]
    # One workspace takes one run (its lease); several workspaces may be labelled at once.
    assert label.global_concurrency_limit is None
    assert nightly.global_concurrency_limit is not None
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options is not None
    assert nightly.concurrency_options.collision_strategy == "CANCEL_NEW"
    (schedule,) = nightly.schedules
    # Without parameters a run could only fail.
    assert not schedule.active
    schema = label.parameter_openapi_schema
    definitions = schema["definitions"]
    fields = definitions["LabelSettings"]["properties"]
    assert {"images", "labels", "workspace", "preset", "k", "held_out"} <= set(fields)
    for name, field in fields.items():
        referred = definitions.get(field.get("$ref", "").rsplit("/", 1)[-1], {})
        assert field.get("description") or referred.get("description"), name


@pytest.mark.slow
def test_a_worker_of_the_pool_runs_a_deployment(deployed: None, cohort: Path, tmp_path: Path) -> None:
    settings = settings_for(cohort, tmp_path / "w", segmentation=VOTE)
    given = {"settings": settings.model_dump(mode="json", by_alias=True)}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("label-dataset/label-dataset")
        run = client.create_flow_run_from_deployment(deployment.id, parameters=given)
        said = prefect("worker", "start", "--pool", "rfss", "--type", "process", "--run-once", cwd=tmp_path)
        ended: FlowRun = client.read_flow_run(run.id)
    assert ended.state is not None
    assert ended.state.is_completed(), f"{ended.state}\n{said}"
    assert read_summary(str(tmp_path / "w")).dataset.status == "accepted"


@pytest.mark.parametrize("name", ["process", "docker", "kubernetes"])
def test_a_pool_takes_its_template(prefect_server: str, name: str) -> None:
    template = json.loads((POOLS / f"{name}.json").read_text(encoding="utf-8"))
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=f"rfss-{name}", type=name, base_job_template=template))
        pool = client.read_work_pool(f"rfss-{name}")
        client.delete_work_pool(f"rfss-{name}")
    # A run that falls silent is found by the automation for zombie runs, which needs the heartbeat.
    heartbeat = pool.base_job_template["variables"]["properties"]["env"]["default"]
    assert heartbeat["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_docker_runs_get_credentials_from_the_worker_and_gpus_on_request(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect_docker = pytest.importorskip("prefect_docker.worker")
    from docker.models.containers import _create_container_args

    assert "the-secret" not in (POOLS / "docker.json").read_text(encoding="utf-8")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    one = [{"count": 1, "capabilities": [["gpu"]]}]
    template = json.loads((POOLS / "docker.json").read_text(encoding="utf-8"))
    values = {"device_requests": one, "env": {"MORE": "yes"}}
    job = asyncio.run(prefect_docker.DockerWorkerJobConfiguration.from_template_and_values(template, values))
    assert job.env["AWS_SECRET_ACCESS_KEY"] == "the-secret"
    assert job.env["MORE"] == "yes"
    # What the Docker client would send: it refuses what it does not know.
    sent = _create_container_args(
        {"image": job.image, "volumes": job.volumes, "version": "1.44", **job.container_create_kwargs}
    )
    assert sent["host_config"]["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert sent["host_config"]["CapDrop"] == ["ALL"]
    assert sent["user"] == "1000:1000"
    assert sent["host_config"]["Binds"][0].endswith(":ro")

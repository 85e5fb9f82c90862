"""deployments/prefect.yaml is accepted by a real server, with the settings' form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client

from flows.service.deployments import SERVED

ROOT = Path(__file__).resolve().parents[2]


def prefect(*arguments: str) -> str:
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=ROOT, env={**os.environ, "PREFECT_API_URL": api}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_deployments_reach_the_server_with_a_form_that_explains_itself() -> None:
    prefect("work-pool", "create", "rfss", "--type", "process", "--overwrite")
    prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    with get_client(sync_client=True) as client:
        label = client.read_deployment_by_name("label-dataset/label-dataset")
        evaluate = client.read_deployment_by_name("evaluate/evaluate")
        nightly = client.read_deployment_by_name("label-dataset/nightly")
        for served in SERVED:
            client.read_deployment_by_name(f"{served.load().name}/{served.name}")
    assert label.work_pool_name == evaluate.work_pool_name == "rfss"
    assert label.global_concurrency_limit is not None
    assert label.global_concurrency_limit.limit == 1
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

"""A service and a cluster with the passwords and certificates of ``rfss secure``: whoever has none is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cohorts import VOTE, settings_for, write_cohort
from disturbed import Cluster
from service import ServiceUnderTest, clean_environment, until

from flows.secure.folder import SecureFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SecureFolder:
    folder = SecureFolder(tmp_path_factory.mktemp("secure") / "keys")
    folder.write(["localhost"])
    return folder


@pytest.mark.slow
def test_a_run_on_a_scheduler_with_certificates(
    made: SecureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in made.environment().items():
        if name.startswith("DASK_"):
            monkeypatch.setenv(name, value)
    cohort = write_cohort(tmp_path / "cohort", patients=6, labelled=4)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"segmentation": VOTE, "k": 3, "held_out": 0.5, "quality": {"min_dice": 0}}))
    cluster = Cluster(tmp_path / "dask", 1, protocol="tls")
    command = [sys.executable, "-m", "flows.cli", "label", str(cohort / "images"), "--labels", str(cohort / "labels")]
    command += ["--workspace", str(tmp_path / "w"), "--config", str(config), "--executor", cluster.address]
    try:
        cluster.ensure()
        done = subprocess.run(
            command, env=clean_environment(), capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "w" / "pseudo_labels").iterdir())) == 2
        bare = {name: value for name, value in clean_environment().items() if not name.startswith("DASK_")}
        refused = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=600, check=False)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "rfss secure" in refused.stderr
    finally:
        cluster.stop()


@pytest.mark.slow
def test_a_service_with_passwords(made: SecureFolder, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=6, labelled=4)
    service = ServiceUnderTest(tmp_path / "home", "--secure", str(made.folder), "--no-automations")
    keys = made.environment()
    user, _, password = keys["PREFECT_API_AUTH_STRING"].partition(":")
    try:
        service.until_ready()
        mlflow = f"http://127.0.0.1:{service.mlflow_port}"
        admin = (keys["MLFLOW_TRACKING_USERNAME"], keys["MLFLOW_TRACKING_PASSWORD"])
        search = "/api/2.0/mlflow/experiments/search"
        with httpx.Client(trust_env=False, timeout=60) as anyone:
            for wrong in (None, (user, "wrong")):
                for path in ("/flow_runs/filter", "/deployments/filter", "/logs/filter"):
                    assert anyone.post(f"{service.api}{path}", json={}, auth=wrong).status_code == 401
                assert anyone.post(f"{mlflow}{search}", json={"max_results": 1}, auth=wrong).status_code == 401
            assert anyone.post(f"{mlflow}{search}", json={"max_results": 1}, auth=admin).is_success
            with httpx.Client(trust_env=False, timeout=60, auth=(user, password)) as api:
                deployment = api.get(f"{service.api}/deployments/name/label-dataset/label-dataset").json()
                settings = settings_for(cohort, tmp_path / "w", segmentation=VOTE).model_dump(mode="json")
                run = api.post(
                    f"{service.api}/deployments/{deployment['id']}/create_flow_run",
                    json={"parameters": {"settings": settings}},
                ).json()

                def state() -> str:
                    return str(api.get(f"{service.api}/flow_runs/{run['id']}").json()["state_type"])

                until(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), "the run ends")
                assert state() == "COMPLETED", api.get(f"{service.api}/flow_runs/{run['id']}").json()["state"]
            models = anyone.get(f"{mlflow}/api/2.0/mlflow/registered-models/search", auth=admin).json()
            assert [model["name"] for model in models["registered_models"]] == ["rfss-dataset.ellipses"]
        check = [sys.executable, "-m", "flows.cli", "serve", "--home", str(service.home), "--check"]
        found = subprocess.run(
            [*check, "--secure", str(made.folder)],
            env=clean_environment(),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        # Passwords are in no log and no list of processes.
        told = service.said + "".join(path.read_text(errors="replace") for path in (service.home / "logs").iterdir())
        told += " ".join(word for process in service.family() for word in process.cmdline())
        assert not [
            value for name, value in keys.items() if "PASSWORD" in name or "AUTH_STRING" in name if value in told
        ]
    finally:
        assert service.end() == 0

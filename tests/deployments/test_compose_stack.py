"""The services of compose.yaml together: a cohort is labelled through Postgres, S3, MLflow and Dask over TLS."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import httpx
import pytest
from certificates import write_tls
from cohorts import VOTE, settings_for, write_cohort
from compose import HOST, Stack
from dask.distributed import Client, Security
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from s3 import s3_server
from service import free_port, until

from flows.store_block import RfssStore

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
REFUSED = 401


@contextmanager
def postgres(stack: Stack, password: str) -> Iterator[None]:
    """What the image's entry point does: a new cluster with one user, one database and a password; then the server."""
    assert POSTGRES is not None
    # It refuses to run as root, and pytest's folders are root's alone.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    who = {"user": account.pw_uid, "group": account.pw_gid} if account else {}
    folder = Path(tempfile.mkdtemp(prefix="rfss-postgres-"))
    (folder / "password").write_text(password)
    if account:
        for path in (folder, folder / "password"):
            os.chown(path, account.pw_uid, account.pw_gid)
    options = ["--username", "rfss", "--auth", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync"]
    subprocess.run([POSTGRES / "initdb", *options, str(folder / "data")], check=True, capture_output=True, **who)
    server = subprocess.Popen(
        [POSTGRES / "postgres", "-D", folder / "data", "-h", HOST, "-p", str(stack.ports[5432]), "-k", folder],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who,
    )  # fmt: skip
    try:
        until(lambda: stack.healthy("postgres"), "Postgres is healthy", 120)
        login = {**os.environ, "PGPASSWORD": password}
        at = ["-h", HOST, "-p", str(stack.ports[5432]), "-U", "rfss"]
        subprocess.run([POSTGRES / "createdb", *at, "prefect"], check=True, env=login)
        yield
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_deployment_labels_a_cohort_through_the_whole_stack(tmp_path: Path) -> None:
    if POSTGRES is None:
        pytest.skip("no PostgreSQL server under /usr/lib/postgresql (Debian: apt install postgresql)")
    cohort = write_cohort(tmp_path / "images", patients=16, labelled=12)
    given = {name: secrets.token_urlsafe(24) for name in (
        "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY",
    )}  # fmt: skip
    login = f"rfss:{secrets.token_urlsafe(24)}"
    given |= {"PREFECT_SERVER_API_AUTH_STRING": login, "PREFECT_API_AUTH_STRING": login}
    given |= {"RFSS_TLS": str(write_tls(tmp_path / "tls")), "RFSS_IMAGES": str(cohort), "RFSS_WORKER_MEMORY": "4GB"}
    with ExitStack() as opened:
        # The S3 store of the tests stands in for the image's.
        s3_port = opened.enter_context(s3_server())
        ports = {port: free_port() for port in (5432, 4200, 5000, 8786, 8787, 8790, 8080)} | {9000: s3_port}
        stack = Stack(tmp_path / "stack", given, ports)
        opened.enter_context(postgres(stack, given["POSTGRES_PASSWORD"]))
        opened.callback(stack.stop)
        for name in ("databases", "databases", "buckets", "buckets"):
            stack.once(name)
        for name in ("prefect", "mlflow", "dask-scheduler", "dask-worker", "worker"):
            stack.start(name)
        stack.once("deploy")
        check_doors(stack)
        label(stack, given, cohort, login)


def check_doors(stack: Stack) -> None:
    """Nobody comes in without a password or a certificate."""
    asked = httpx.post(f"{stack.url(4200)}/api/deployments/filter", json={}, trust_env=False)
    assert asked.status_code == REFUSED
    # The page itself asks for the password.
    assert httpx.get(stack.url(4200), trust_env=False, follow_redirects=True).status_code == 200
    models = httpx.get(f"{stack.url(5000)}/api/2.0/mlflow/registered-models/search", trust_env=False)
    assert models.status_code == REFUSED
    foreign = httpx.get(f"{stack.url(5000)}/", headers={"Host": "evil.example"}, trust_env=False)
    assert foreign.status_code == 403
    for address in ("tcp", "tls"):
        with pytest.raises((OSError, TimeoutError, ValueError, TypeError)):
            Client(f"{address}://{HOST}:{stack.ports[8786]}", timeout="5s")


def label(stack: Stack, given: dict[str, str], cohort: Path, login: str) -> None:
    api = f"{stack.url(4200)}/api"
    endpoint = stack.url(9000)
    with temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: login}):
        RfssStore(
            url="s3://workspaces",
            access_key_id=given["AWS_ACCESS_KEY_ID"],
            secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=endpoint,
        ).save("hospital")
    name, _, word = login.partition(":")
    with httpx.Client(base_url=api, auth=(name, word), timeout=60, trust_env=False) as client:
        deployment = client.get("/deployments/name/label-dataset/label-dataset").json()
        # What the form begins with: chunks go to the stack's Dask workers.
        execution = deployment["parameters"]["settings"]["execution"]
        assert execution == {"executor": f"tls://{HOST}:{stack.ports[8786]}"}
        settings = settings_for(cohort, Path("block"), segmentation=VOTE, execution=execution)
        given_settings = settings.model_dump(mode="json", by_alias=True) | {"workspace": "block://hospital/hearts"}
        started = client.post(
            f"/deployments/{deployment['id']}/create_flow_run",
            json={"parameters": {"settings": given_settings}},
        ).json()

        def run() -> dict[str, object]:
            return dict(client.get(f"/flow_runs/{started['id']}").json())

        until(lambda: run()["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), "the run ends", 1800)
        lines = client.post("/logs/filter", json={"logs": {"flow_run_id": {"any_": [started["id"]]}}}).json()
        told = "\n".join(line["message"] for line in lines)
        assert run()["state_type"] == "COMPLETED", f"{run()['state_name']}\n{told}\n{stack.said('worker')}"
    store = {"endpoint_url": endpoint, "aws_access_key_id": "any", "aws_secret_access_key": "any"}
    s3 = boto3.client("s3", region_name="us-east-1", **store)

    def keys(bucket: str, prefix: str) -> list[str]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    assert keys("workspaces", "hearts/summary.json")
    assert len(keys("workspaces", "hearts/pseudo_labels/")) == 4
    assert [key for key in keys("mlflow", "") if key.endswith("environment.json")]
    login_mlflow = (given["MLFLOW_TRACKING_USERNAME"], given["MLFLOW_TRACKING_PASSWORD"])
    models = httpx.get(
        f"{stack.url(5000)}/api/2.0/mlflow/registered-models/search", auth=login_mlflow, trust_env=False
    ).json()
    assert [model["name"] for model in models["registered_models"]] == ["rfss-dataset.ellipses"]
    # The chunks ran on the stack's worker, not in the flow's process: it has what they need.
    tls = Path(given["RFSS_TLS"])
    certificate = {"tls_client_cert": str(tls / "dask.pem"), "tls_client_key": str(tls / "dask-key.pem")}
    security = Security(tls_ca_file=str(tls / "ca.pem"), require_encryption=True, **certificate)
    with Client(f"tls://{HOST}:{stack.ports[8786]}", security=security, timeout="30s") as dask:
        loaded = dask.run(lambda: {"tasks.worker", "rfss_core.embedding"} <= set(sys.modules))
    assert list(loaded.values()) == [True]

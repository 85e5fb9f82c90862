"""The data registry on a real MLflow server with authentication, its artifacts in a real S3-compatible store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import pytest
import requests
from mlflow_server import ADMIN, PASSWORD, MlflowServer, mlflow_server
from published import Published, publish_dataset, record_of
from s3 import FlakyProxy, make_bucket

from rfss_core.datasets import load
from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import RegistryAccessError, RegistryError
from rfss_core.store.files import Files
from tasks.dataset_run import register_dataset
from tasks.promotion import promote
from tasks.registry import DataRegistry
from tasks.student_notes import note_result

READER_PASSWORD = "read but not write"
SCRIPT = """
import warnings; warnings.simplefilter("ignore")
import rfss_core.datasets
dataset = rfss_core.datasets.load("hearts@champion")
print(dataset.version, dataset.digest, len(dataset.cases()), dataset.cases()[0].image().shape)
"""


@dataclass(frozen=True)
class Site:
    """A hospital's set-up: a server, a bucket, a workspace."""

    server: MlflowServer
    bucket: str
    published: Published


@pytest.fixture(scope="module")
def site(_s3_proxy: FlakyProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    bucket = make_bucket(_s3_proxy.port)
    with mlflow_server(tmp_path_factory.mktemp("server"), f"{bucket}/artifacts") as server:
        yield Site(server, bucket, publish_dataset(tmp_path_factory.mktemp("site")))


@pytest.fixture(autouse=True)
def _as_admin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_registry_behind_a_password_with_artifacts_in_s3(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    registration = register_dataset(record_of(site.published), Files(site.published.workspace))
    registry, version = registration.registry, registration.version
    assert version.aliases == ("candidate",)
    fs, _ = fsspec.url_to_fs(site.bucket)
    stored = [path.rsplit("/", 1)[-1] for path in fs.find(f"{site.bucket}/artifacts")]
    assert sorted(stored) == ["card.md", "manifest.json", "manifest.parquet"]
    promote(registry, DatasetReference("hearts"))
    note_result(registry, version, "It helps.")
    assert "It helps." in (site.published.folder / "card.md").read_text()

    # In anyone's script, with nothing but the environment.
    done = run("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["1", site.published.manifest.digest, "2"]
    listed = run("-m", "flows.cli", "datasets", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["hearts"][0]["aliases"] == ["candidate", "champion"]

    # A wrong password: one line, which says what to do.
    refused = run("-m", "flows.cli", "datasets", MLFLOW_TRACKING_PASSWORD="wrong")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "refuses the credentials of user 'admin'; set MLFLOW_TRACKING_USERNAME" in refused.stderr
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(RegistryAccessError, match="without a user name"):
        load("hearts@champion")
    # Somebody who may read and no more.
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    _add_reader(site.server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", READER_PASSWORD)
    assert load("hearts@champion").version == "1"
    with pytest.raises(RegistryAccessError, match="of user 'reader'"):
        DataRegistry(site.server.uri).set_alias(version, "mine")

    # Away: found out at once, not after minutes.
    site.server.stop()
    away = run("-m", "flows.cli", "promote", "hearts")
    assert away.returncode == 1
    assert away.stderr.count("\n") == 1
    assert "does not answer; start it" in away.stderr
    with pytest.raises(RegistryError, match="stopped answering"):
        registry.aliases("hearts")


def _add_reader(uri: str) -> None:
    # By its REST interface: MLflow's own client of it imports the whole server.
    answer = requests.post(
        f"{uri}/api/2.0/mlflow/users/create",
        json={"username": "reader", "password": READER_PASSWORD},
        auth=(ADMIN, PASSWORD),
        timeout=60,
    )
    answer.raise_for_status()

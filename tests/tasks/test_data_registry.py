"""Names, versions and aliases in a real MLflow store (sqlite)."""

from __future__ import annotations

import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.data import get_source
from published import Published, publish_dataset

from rfss_core.datasets import load
from rfss_core.errors import (
    CorruptStoreError,
    InputNotFoundError,
    RegistryError,
    SettingsError,
    UnknownDatasetError,
)
from tasks import tracking
from tasks.registry import DataRegistry

pytestmark = pytest.mark.usefixtures("plain_environment")


def test_names_are_found_by_argument_and_by_environment(
    registered: Published, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = load("hearts@candidate", workspace=registered.workspace)
    assert (found.name, found.version, found.digest) == ("hearts", "1", registered.manifest.digest)
    assert found.registered is not None
    assert (found.registered.aliases, found.registered.status) == (("candidate",), "accepted")
    uri = f"sqlite:///{registered.workspace / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="set MLFLOW_TRACKING_URI"):
        load("hearts/1")
    assert load("hearts/1", registry=uri, verify="labels").digest == found.digest
    assert load("hearts/1", registry=registered.workspace, verify="none").digest == found.digest
    monkeypatch.setenv("RFSS_WORKSPACE", str(registered.workspace))
    assert load("hearts@candidate", verify="none").digest == found.digest
    monkeypatch.delenv("RFSS_WORKSPACE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert load("hearts@candidate", verify="none").digest == found.digest
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(registered.workspace)
    assert load("hearts@candidate", verify="none").digest == found.digest
    with pytest.raises(InputNotFoundError, match=r"holds no mlflow\.db"):
        load("hearts/1", workspace=tmp_path)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("lungs@champion", "no data set 'lungs' is registered .* there are: hearts"),
        ("hearts/7", r"no version 7; it has versions 1 and aliases @candidate \(version 1\)"),
        ("hearts@champion", r"no alias 'champion'; it has versions 1 and aliases @candidate \(version 1\)"),
        ("hearts", r"names neither version nor alias; write hearts@champion or hearts/1; it has versions 1"),
    ],
)
def test_what_is_not_registered_is_answered_with_what_is(registered: Published, reference: str, message: str) -> None:
    with pytest.raises(UnknownDatasetError, match=message):
        load(reference, workspace=registered.workspace)


def test_loading_makes_it_the_input_of_the_active_run(registered: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{registered.workspace / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    [experiment] = [item for item in client.search_experiments() if item.name == "rfss"]
    with mlflow.start_run(experiment_id=experiment.experiment_id) as run:
        load("hearts@candidate")
        load("hearts@candidate", log_input=False)
    [logged] = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert {tag.key: tag.value for tag in logged.tags} == {
        "mlflow.data.context": "training",
        "rfss.dataset": "hearts/1",
    }
    assert get_source(logged).load(verify="labels").digest == registered.manifest.digest
    digest = registered.manifest.digest[:36]
    found = client.search_runs([experiment.experiment_id], f"dataset.name = 'hearts' AND dataset.digest = '{digest}'")
    assert {item.info.run_id for item in found} >= {run.info.run_id}
    assert len(found) == 2


def test_mlflows_own_constructor_takes_names_and_folders(
    registered: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered.workspace / 'mlflow.db'}")
    made = mlflow.data.from_rfss("hearts@candidate")
    assert (made.name, made.digest) == ("hearts", registered.manifest.digest[:36])
    assert made.profile["accept"] == 2
    again = mlflow.data.from_rfss(registered.folder, digest=made.digest)
    assert again.source.load(verify="none").digest == registered.manifest.digest
    with pytest.raises(CorruptStoreError, match="not abc"):
        mlflow.data.from_rfss(registered.folder, digest="abc")


def test_a_workspace_may_be_moved_with_its_registry(registered: Published, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(registered.workspace, moved)
    hidden = registered.workspace.rename(registered.workspace.with_name("hidden"))
    try:
        found = load("hearts@candidate", workspace=moved)
        assert found.folder == str(moved / "datasets" / "first")
        (moved / "datasets" / "first" / "manifest.json").unlink()
        with pytest.raises(InputNotFoundError, match="which this machine does not reach"):
            load("hearts@candidate", workspace=moved)
    finally:
        hidden.rename(registered.workspace)
    copy = load("hearts@candidate", workspace=moved, folder=registered.folder)
    assert copy.digest == registered.manifest.digest


def test_another_manifest_at_the_address_is_not_taken(registered: Published, tmp_path: Path) -> None:
    other = publish_dataset(tmp_path, seed=1)
    with pytest.raises(CorruptStoreError, match=r"manifest\.json .* is not the manifest of 'hearts' version 1"):
        load("hearts@candidate", workspace=registered.workspace, folder=other.folder)


class Healthy(BaseHTTPRequestHandler):
    """The part of an MLflow server that is asked whether it is there."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_went_away_is_found_out_before_mlflow_tries_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_FRESH_S", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    registry = DataRegistry(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    begin = time.monotonic()
    for ask in (
        registry.names,
        lambda: registry.aliases("hearts"),
        lambda: registry.remove_alias("hearts", "champion"),
    ):
        with pytest.raises(RegistryError, match="stopped answering; start it"):
            ask()
    assert time.monotonic() - begin < 30

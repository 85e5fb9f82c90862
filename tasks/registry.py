"""The data registry in MLflow.

MLflow has no registry of data sets. Names, versions and aliases come from its *model* registry: a registered model
``rfss-dataset.<name>``, tagged ``kind=dataset``, whose versions point at a run's ``dataset`` artifacts
(``models:/rfss-dataset.<name>@candidate`` downloads the manifest). Nothing outside this module knows that.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from rfss_core.errors import SettingsError
from rfss_core.store.files import Files
from tasks.mlflow_data import PseudoLabelDataset, PseudoLabelSource

EXPERIMENT = "rfss"
PREFIX = "rfss-dataset."


@dataclass(frozen=True)
class DatasetRecord:
    """What gets registered."""

    name: str
    digest: str
    status: str
    """``accepted`` or ``rejected``."""
    fingerprint: str
    address: str
    """Folder or URL with the manifest and the masks."""
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    artifacts: Mapping[str, Sequence[str]]
    """Artifact folder in the run -> files below the workspace."""
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class Registration:
    """Where it was registered."""

    run_id: str
    version: str
    tracking_uri: str


def tracking_uri(workspace: Files) -> str:
    """Return ``MLFLOW_TRACKING_URI``, or the workspace's own sqlite store.

    Raises:
        SettingsError: the workspace is an object store, where sqlite cannot live, and the variable is not set.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    root = workspace.local_path(".")
    if root is None:
        raise SettingsError(
            f"workspace '{workspace.url}' is an object store and cannot hold MLflow's sqlite file; "
            "set MLFLOW_TRACKING_URI to an MLflow server or a local sqlite:/// file"
        )
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def register_dataset(record: DatasetRecord, workspace: Files) -> Registration:
    """Record a data set in MLflow; give it the alias ``candidate`` if it was accepted.

    The same digest with the same status and fingerprint is registered once: a repeated run returns the first version.
    The alias moves last, so a reader of ``@candidate`` never sees half of a registration.

    Args:
        record: the data set, its figures and its files.
        workspace: where the artifacts are, and the embedded store if there is no server.

    Returns:
        The run's id and the data set's version.
    """
    uri = tracking_uri(workspace)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    registered = PREFIX + record.name
    known = _find(client, registered, record)
    if known is not None:
        return Registration(known.run_id, str(known.version), uri)

    # The client's own methods: the fluent ones would set the tracking address for the whole process.
    run_id = client.create_run(_experiment(client, workspace, uri), run_name=f"label {record.name}").info.run_id
    try:
        _log(client, run_id, record, workspace)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    source = f"{client.get_run(run_id).info.artifact_uri}/dataset"
    version = _create_version(client, registered, record, run_id, source)
    if record.status == "accepted":
        client.set_registered_model_alias(registered, "candidate", version)
    return Registration(run_id, version, uri)


def _experiment(client: MlflowClient, workspace: Files, uri: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Embedded store: artifacts beside it. A server decides for itself where they go.
    root = workspace.local_path(".") if uri.startswith("sqlite:///") else None
    location = None if root is None else (root.resolve() / "mlflow-artifacts").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _log(client: MlflowClient, run_id: str, record: DatasetRecord, workspace: Files) -> None:
    now = int(time.time() * 1000)
    tags = {"dataset": record.name, "status": record.status, "fingerprint": record.fingerprint}
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in record.metrics.items()],
        params=[Param(name, str(value)[:500]) for name, value in record.params.items()],
        tags=[RunTag(f"rfss.{name}", value) for name, value in tags.items()],
    )
    for folder, paths in record.artifacts.items():
        for path in paths:
            with _local(workspace, path) as file:
                client.log_artifact(run_id, str(file), folder)
    source = PseudoLabelSource(record.address)
    dataset = PseudoLabelDataset(source, record.name, record.digest, dict(record.profile))
    entity = Dataset(**dataset.to_dict())
    client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "pseudo-labels")])])


@contextmanager
def _local(files: Files, path: str) -> Iterator[Path]:
    """Yield a local file with the content of a file of the workspace."""
    here = files.local_path(path)
    if here is not None:
        yield here
        return
    with tempfile.TemporaryDirectory(prefix="rfss-") as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        copy.write_bytes(files.read_bytes(path))
        yield copy


def _create_version(client: MlflowClient, registered: str, record: DatasetRecord, run_id: str, source: str) -> str:
    try:
        client.create_registered_model(registered, tags={"kind": "dataset"})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"digest": record.digest, "status": record.status, "fingerprint": record.fingerprint}
    return str(client.create_model_version(registered, source, run_id=run_id, tags=tags).version)


def _find(client: MlflowClient, registered: str, record: DatasetRecord) -> Any | None:
    for version in client.search_model_versions(f"name = '{registered}'"):
        tags = version.tags
        if (tags.get("digest"), tags.get("status"), tags.get("fingerprint")) == (
            record.digest,
            record.status,
            record.fingerprint,
        ):
            return version
    return None

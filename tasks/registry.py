"""The data registry in MLflow.

MLflow has no registry of data sets. Names, versions and aliases come from its *model* registry: a registered model
``rfss-dataset.<name>``, tagged ``kind=dataset``, whose versions point at a run's ``dataset`` artifacts
(``models:/rfss-dataset.<name>@candidate`` downloads the manifest). Nothing outside this module knows that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

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
    folder: Path
    """Folder with the manifest and the masks."""
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    artifacts: Mapping[str, Sequence[Path]]
    """Artifact folder in the run -> local files, or folders whose content goes there."""
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class Registration:
    """Where it was registered."""

    run_id: str
    version: str
    tracking_uri: str


def tracking_uri(workspace: Path) -> str:
    """Return ``MLFLOW_TRACKING_URI``, or the workspace's own sqlite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.resolve() / 'mlflow.db'}"


def register_dataset(record: DatasetRecord, workspace: Path) -> Registration:
    """Record a data set in MLflow; give it the alias ``candidate`` if it was accepted.

    The same digest with the same status and fingerprint is registered once: a repeated run returns the first version.
    The alias moves last, so a reader of ``@candidate`` never sees half of a registration.

    Args:
        record: the data set, its figures and its files.
        workspace: local folder for the embedded store.

    Returns:
        The run's id and the data set's version.
    """
    uri = tracking_uri(workspace)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    registered = PREFIX + record.name
    known = _find(client, registered, record)
    if known is not None:
        return Registration(known.run_id, str(known.version), uri)

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        # Embedded store: artifacts beside it. A server decides for itself where they go.
        location = (workspace.resolve() / "mlflow-artifacts").as_uri() if uri.startswith("sqlite:///") else None
        experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
    else:
        experiment_id = experiment.experiment_id
    with mlflow.start_run(experiment_id=experiment_id, run_name=f"label {record.name}") as run:
        mlflow.set_tags(
            {"rfss.dataset": record.name, "rfss.status": record.status, "rfss.fingerprint": record.fingerprint}
        )
        mlflow.log_params({key: str(value)[:500] for key, value in record.params.items()})
        mlflow.log_metrics(dict(record.metrics))
        for folder, paths in record.artifacts.items():
            for path in paths:
                log = mlflow.log_artifacts if path.is_dir() else mlflow.log_artifact
                log(str(path), folder)
        source = PseudoLabelSource(str(record.folder))
        dataset = PseudoLabelDataset(source, record.name, record.digest, dict(record.profile))
        mlflow.log_input(dataset, context="pseudo-labels")
        artifact_uri = mlflow.get_artifact_uri("dataset")
    version = _create_version(client, registered, record, run.info.run_id, artifact_uri)
    if record.status == "accepted":
        client.set_registered_model_alias(registered, "candidate", version)
    return Registration(run.info.run_id, version, uri)


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

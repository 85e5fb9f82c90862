"""The data registry in MLflow.

MLflow has no registry of data sets. Names, versions and aliases come from its *model* registry: a registered model
``rfss-dataset.<name>``, tagged ``kind=dataset``, whose versions point at a run's ``dataset`` artifacts
(``models:/rfss-dataset.<name>@candidate`` downloads the manifest). Nothing outside this module knows that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
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

    # The client's own methods: the fluent ones would set the tracking address for the whole process.
    run_id = client.create_run(_experiment(client, workspace, uri), run_name=f"label {record.name}").info.run_id
    try:
        _log(client, run_id, record)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    source = f"{client.get_run(run_id).info.artifact_uri}/dataset"
    version = _create_version(client, registered, record, run_id, source)
    if record.status == "accepted":
        client.set_registered_model_alias(registered, "candidate", version)
    return Registration(run_id, version, uri)


def _experiment(client: MlflowClient, workspace: Path, uri: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    # Embedded store: artifacts beside it. A server decides for itself where they go.
    location = (workspace.resolve() / "mlflow-artifacts").as_uri() if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _log(client: MlflowClient, run_id: str, record: DatasetRecord) -> None:
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
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(run_id, str(path), folder)
    source = PseudoLabelSource(str(record.folder))
    dataset = PseudoLabelDataset(source, record.name, record.digest, dict(record.profile))
    entity = Dataset(**dataset.to_dict())
    client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "pseudo-labels")])])


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

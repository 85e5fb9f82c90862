"""A data set's run in MLflow: its figures, files and lineage; then its version in the data registry."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import RegistryAccessError, RegistryError
from rfss_core.store.files import Files
from tasks.mlflow_data import DIGEST_DIGITS, PseudoLabelDataset, PseudoLabelSource, SupportSource
from tasks.registry import CANDIDATE, DataRegistry, DatasetVersion
from tasks.tracking import answering, tracking_uri

EXPERIMENT = "rfss"
ARTIFACTS = "dataset"
"""Folder of manifest and card in the run's artifacts: what a version of the registry points at."""
CONTEXT = "mlflow.data.context"
MADE, SUPPORT = "pseudo-labels", "support"
"""Contexts in which a labelling run's data sets are logged: what it made, and what it made it from."""


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
    texts: Mapping[str, str] = field(default_factory=dict)
    """Path in the run's artifacts -> text."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the version, besides those that every one has."""
    support: SupportSource | None = None
    """The support set that the pseudo-labels come from."""
    support_digest: str = ""
    description: str = ""
    """Markdown that MLflow shows on the version's page."""


@dataclass(frozen=True)
class Registration:
    """Where it was registered."""

    version: DatasetVersion
    registry: DataRegistry


def register_dataset(record: DatasetRecord, workspace: Files) -> Registration:
    """Record a data set in MLflow; give it the alias ``candidate`` if it was accepted.

    The same digest with the same status and fingerprint is registered once: a repeated run returns the first version.
    The alias moves last, so a reader of ``@candidate`` never sees half of a registration.

    Args:
        record: the data set, its figures and its files.
        workspace: where the artifacts are, and the embedded store if there is no server.

    Returns:
        The run's id and the data set's version.

    Raises:
        SettingsError: the workspace is an object store and ``MLFLOW_TRACKING_URI`` is not set.
        RegistryError: the server does not answer.
        RegistryAccessError: it refuses the credentials.
    """
    uri = tracking_uri(workspace)
    registry = DataRegistry(uri)
    known = _find(registry, record)
    if known is not None:
        return _candidate(registry, known)
    with answering(uri, patient=True):
        # The client's own methods: the fluent ones would set the tracking address for the whole process.
        client = registry.client
        run = client.create_run(experiment_id(client, workspace, uri), run_name=f"label {record.name}")
        run_id = str(run.info.run_id)
        try:
            _log(client, run_id, record, workspace)
        except BaseException:
            # The first error is the one to be seen.
            with suppress(RegistryError, RegistryAccessError, MlflowException), answering(uri):
                client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
    tags = {
        **record.tags,
        "digest": record.digest,
        "status": record.status,
        "fingerprint": record.fingerprint,
        "address": record.address,
        "support_digest": record.support_digest,
    }
    version = registry.add(record.name, run_id, f"{run.info.artifact_uri}/{ARTIFACTS}", tags)
    if record.description:
        registry.describe(version, record.description)
    return _candidate(registry, version)


def _candidate(registry: DataRegistry, version: DatasetVersion) -> Registration:
    """Let an accepted version be the candidate: the last thing that a registration does."""
    if version.status == "accepted" and registry.aliases(version.name).get(CANDIDATE) != version.version:
        registry.set_alias(version, CANDIDATE)
    return Registration(registry.find(DatasetReference(version.name, version=version.version)), registry)


def _find(registry: DataRegistry, record: DatasetRecord) -> DatasetVersion | None:
    if record.name not in registry.names():
        return None
    wanted = (record.digest, record.status, record.fingerprint)
    for version in registry.versions(record.name):
        if (version.digest, version.status, version.tags.get("fingerprint")) == wanted:
            return version
    return None


def experiment_id(client: MlflowClient, workspace: Files, uri: str) -> str:
    """Return the experiment of all runs, made where it is missing."""
    known = client.get_experiment_by_name(EXPERIMENT)
    if known is not None:
        return str(known.experiment_id)
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
    for path, text in record.texts.items():
        client.log_text(run_id, text, path)
    # MLflow knows inputs of a run only; the context tells what came out from what went in.
    source = PseudoLabelSource(record.address)
    made = PseudoLabelDataset(source, record.name, record.digest, dict(record.profile))
    inputs = [DatasetInput(made.entity(), [InputTag(CONTEXT, MADE)])]
    if record.support is not None:
        support = Dataset(
            name=f"{record.name}.support",
            digest=record.support_digest[:DIGEST_DIGITS],
            source_type=SupportSource.TYPE,
            source=record.support.to_json(),
        )
        inputs.append(DatasetInput(support, [InputTag(CONTEXT, SUPPORT)]))
    client.log_inputs(run_id, datasets=inputs)


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

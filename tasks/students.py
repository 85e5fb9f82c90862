"""Students: models that were trained on registered data sets, and the links between the two.

A student is a version of the registered model ``rfss-student.<name>``, tagged ``kind=student``. Both ways are written
down: the training run has the data sets as its inputs, the student's version names them (tag ``datasets``), and each
data set's version names the student (tag ``student.<name>.<version>``); ``tasks/lineage.py`` walks them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities import DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from rfss_core.datasets.pseudo_label_set import PseudoLabelSet
from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import InputError, UnknownDatasetError
from tasks.dataset_run import CONTEXT
from tasks.mlflow_data import DIGEST_DIGITS, PseudoLabelDataset
from tasks.registry import DataRegistry, DatasetVersion, missing, pages
from tasks.tracking import answering

PREFIX = "rfss-student."
TRAINING = "training"
"""Context in which a training run's data sets are logged."""
DATASETS = "datasets"
"""Tag of a student's version: JSON list of ``name/version``, or of ``name`` where it is not registered."""
LINK = "student."
"""Begin of the tags of a data set's version that name its students."""
GAIN = "student_gain"
"""Tag of a student's and of a data set's version: Dice won by the pseudo-labels."""


@dataclass(frozen=True)
class StudentVersion:
    """One version of a registered student."""

    name: str
    version: str
    run_id: str
    """MLflow run that trained it."""
    datasets: tuple[str, ...]
    """Data sets that it was trained on, ``name/version``."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def dice(self) -> float | None:
        """Mean Dice on the test patients, where it is known."""
        value = self.tags.get("dice")
        return None if value is None else float(value)

    @property
    def gain(self) -> float | None:
        """Dice won over the same network on the experts' labels alone, where it was compared."""
        value = self.tags.get(GAIN)
        return None if value is None else float(value)


def register_student(
    registry: DataRegistry,
    name: str,
    run_id: str,
    model_uri: str,
    datasets: Sequence[PseudoLabelSet],
    *,
    dice: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> StudentVersion:
    """Register a trained model with the data sets that it was trained on.

    Safe to call again: the same run and model are registered once.

    Args:
        registry: the data registry; the training run must be in the same MLflow store.
        name: name of the student, as for a data set.
        run_id: run that trained it; it gets the data sets as inputs if it does not have them.
        model_uri: where the model lies, for example the run's artifact URI and ``/model``.
        datasets: what it was trained on, besides expert labels.
        dice: mean Dice on the test patients.
        tags: more tags of the version.

    Returns:
        The student's version.

    Raises:
        InputError: the name is none, or no data set is given.
        RegistryError: the store does not answer.
    """
    DatasetReference.parse(name)
    if not datasets:
        raise InputError(f"student '{name}' was trained on no data set; register it as a plain MLflow model")
    client, model = registry.client, PREFIX + name
    with answering(registry.uri):
        _log_inputs(registry, run_id, datasets)
        try:
            client.create_registered_model(model, tags={"kind": "student"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = [item for item in students(registry, name) if item.tags.get("model_uri") == model_uri]
        student = known[0] if known else None
        if student is None:
            given = {
                DATASETS: json.dumps([str(dataset) for dataset in datasets]),
                "model_uri": model_uri,
                **({} if dice is None else {"dice": f"{dice:.6f}"}),
                **(tags or {}),
            }
            item = client.create_model_version(model, model_uri, run_id=run_id, tags=given, await_creation_for=0)
            student = _student(name, item, {})
    for dataset in datasets:
        version = registered_version(registry, dataset)
        if version is not None:
            said = {"run_id": run_id} | ({} if dice is None else {"dice": round(dice, 6)})
            registry.tag(version, {f"{LINK}{student.name}.{student.version}": json.dumps(said)})
    return student


def student_names(registry: DataRegistry) -> list[str]:
    """Return the names of all students, sorted."""
    with answering(registry.uri):
        found = pages(lambda token: registry.client.search_registered_models("tags.kind = 'student'", page_token=token))
        return sorted(model.name.removeprefix(PREFIX) for model in found if model.name.startswith(PREFIX))


def students(registry: DataRegistry, name: str) -> list[StudentVersion]:
    """Return all versions of a student, the newest first.

    Raises:
        UnknownDatasetError: there is no such student.
    """
    with answering(registry.uri):
        try:
            model = registry.client.get_registered_model(PREFIX + name)
        except MlflowException as error:
            if not missing(error):
                raise
            listed = ", ".join(student_names(registry)) or "none"
            raise UnknownDatasetError(
                f"no student '{name}' is registered at {registry.uri}; registered are: {listed}"
            ) from error
        found = pages(lambda token: registry.client.search_model_versions(f"name = '{PREFIX}{name}'", page_token=token))
        versions = [_student(name, item, model.aliases) for item in found]
        return sorted(versions, key=lambda item: int(item.version), reverse=True)


def student_links(version: DatasetVersion) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (name, version, what is known) of each student that was trained on a version of a data set, sorted."""
    links = []
    for key, said in version.tags.items():
        if key.startswith(LINK):
            name, _, number = key.removeprefix(LINK).rpartition(".")
            links.append((name, number, dict(json.loads(said))))
    return sorted(links, key=lambda link: link[:2])


def _log_inputs(registry: DataRegistry, run_id: str, datasets: Sequence[PseudoLabelSet]) -> None:
    inputs = registry.client.get_run(run_id).inputs
    logged = {(i.dataset.name, i.dataset.digest) for i in (inputs.dataset_inputs if inputs else [])}
    fresh = [
        DatasetInput(
            PseudoLabelDataset.of(dataset).entity(),
            [InputTag(CONTEXT, TRAINING), InputTag("rfss.dataset", str(dataset))],
        )
        for dataset in datasets
        if (dataset.name, dataset.digest[:DIGEST_DIGITS]) not in logged
    ]
    if fresh:
        registry.client.log_inputs(run_id, datasets=fresh)


def registered_version(registry: DataRegistry, dataset: PseudoLabelSet) -> DatasetVersion | None:
    """Return the version that a loaded data set is, by name and digest where it was loaded from a folder, if any."""
    if dataset.name not in registry.names():
        return None
    if dataset.registered is not None and dataset.registered.registry == registry.uri:
        return registry.find(DatasetReference(dataset.name, version=dataset.registered.version))
    return registry.by_digest(dataset.name, dataset.digest)


def _student(name: str, item: Any, aliases: Mapping[str, Any]) -> StudentVersion:
    version = str(item.version)
    return StudentVersion(
        name=name,
        version=version,
        run_id=str(item.run_id),
        datasets=tuple(json.loads(item.tags.get(DATASETS, "[]"))),
        aliases=tuple(sorted(alias for alias, at in aliases.items() if str(at) == version)),
        tags=dict(item.tags),
    )

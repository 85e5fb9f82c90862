"""The data registry in MLflow: names, versions and aliases of data sets.

MLflow has no registry of data sets. Names, versions and aliases come from its *model* registry: a registered model
``rfss-dataset.<name>``, tagged ``kind=dataset``, whose versions point at a run's ``dataset`` artifacts
(``models:/rfss-dataset.<name>@candidate`` downloads the manifest). Nothing outside this module knows that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rfss_core.datasets.manifest import JSON_NAME
from rfss_core.datasets.reference import DatasetReference
from rfss_core.datasets.registry import RegisteredDataset
from rfss_core.errors import UnknownDatasetError
from tasks.tracking import DATABASE, answering, connect

PREFIX = "rfss-dataset."
CANDIDATE, CHAMPION = "candidate", "champion"
"""Aliases: what the gate accepted last, and what was promoted."""
_KIND = "tags.kind = 'dataset'"
_DESCRIPTION = 5000
"""Characters that MLflow's database keeps of a description."""
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@dataclass(frozen=True)
class DatasetVersion(RegisteredDataset):
    """A registered version with what the registry alone knows."""

    run_id: str = ""
    """MLflow run that made it."""
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When it was registered, UTC."""

    @property
    def held_out_dice(self) -> float | None:
        """Mean Dice over classes on held-out patients."""
        value = self.tags.get("held_out_dice")
        return None if value is None else float(value)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class DataRegistry:
    """The data registry of one MLflow store.

    Args:
        uri: MLflow tracking URI, see :func:`tasks.tracking.registry_uri`.

    Raises:
        RegistryError: the store does not answer.
        RegistryAccessError: it refuses the credentials.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client: MlflowClient = connect(uri)

    def names(self) -> list[str]:
        """Return the names of all data sets, sorted."""
        with answering(self.uri):
            found = pages(lambda token: self.client.search_registered_models(_KIND, page_token=token))
            return sorted(model.name.removeprefix(PREFIX) for model in found if model.name.startswith(PREFIX))

    def aliases(self, name: str) -> dict[str, str]:
        """Return alias -> version of a data set.

        Raises:
            UnknownDatasetError: there is no such data set; the message lists those that there are.
        """
        with answering(self.uri):
            try:
                model = self.client.get_registered_model(PREFIX + name)
            except MlflowException as error:
                if not missing(error):
                    raise
                known = self.names()
                listed = f"there are: {', '.join(known)}" if known else "there is none yet; run `rfss label` first"
                raise UnknownDatasetError(f"no data set '{name}' is registered at {self.uri}; {listed}") from error
            return {alias: str(version) for alias, version in sorted(model.aliases.items())}

    def versions(self, name: str) -> list[DatasetVersion]:
        """Return all versions of a data set, the newest first.

        Raises:
            UnknownDatasetError: there is no such data set.
        """
        aliases = self.aliases(name)
        with answering(self.uri):
            found = pages(lambda token: self.client.search_model_versions(f"name = '{PREFIX}{name}'", page_token=token))
            versions = [self._version(name, item, aliases) for item in found]
            return sorted(versions, key=lambda item: int(item.version), reverse=True)

    def find(self, reference: DatasetReference) -> DatasetVersion:
        """Return the version that a reference means.

        Raises:
            UnknownDatasetError: unknown name, version or alias, or none of the latter two is given; the message lists
                what there is.
        """
        aliases = self.aliases(reference.name)
        version = aliases.get(reference.alias) if reference.alias is not None else reference.version
        if version is not None:
            with answering(self.uri):
                try:
                    item = self.client.get_model_version(PREFIX + reference.name, version)
                except MlflowException as error:
                    if not missing(error):
                        raise
                else:
                    return self._version(reference.name, item, aliases)
        raise UnknownDatasetError(self._what_there_is(reference, aliases))

    def add(self, name: str, run_id: str, source: str, tags: Mapping[str, str]) -> DatasetVersion:
        """Register a version; the alias comes later, so that nobody sees half of it.

        Args:
            name: of the data set.
            run_id: run that made it.
            source: artifact URI of the run's ``dataset`` folder.
            tags: ``digest``, ``status``, ``fingerprint``, ``address``, ...
        """
        with answering(self.uri):
            try:
                self.client.create_registered_model(PREFIX + name, tags={"kind": "dataset"})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            item = self.client.create_model_version(
                PREFIX + name, source, run_id=run_id, tags=dict(tags), await_creation_for=0
            )
            return self._version(name, item, {})

    def set_alias(self, version: DatasetVersion, alias: str) -> None:
        """Move an alias to a version: one atomic step."""
        with answering(self.uri):
            self.client.set_registered_model_alias(PREFIX + version.name, alias, version.version)

    def remove_alias(self, name: str, alias: str) -> None:
        """Take an alias from whichever version has it."""
        with answering(self.uri):
            self.client.delete_registered_model_alias(PREFIX + name, alias)

    def tag(self, version: DatasetVersion, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        with answering(self.uri):
            for key, value in tags.items():
                self.client.set_model_version_tag(PREFIX + version.name, version.version, key, value)

    def describe(self, version: DatasetVersion, text: str) -> None:
        """Set the text that MLflow shows on a version's page: its data card, as much of it as a store keeps."""
        if len(text) > _DESCRIPTION:
            text = f"{text[: _DESCRIPTION - 60].rstrip()}\n\n... the rest is in the artifact dataset/card.md"
        with answering(self.uri):
            self.client.update_model_version(PREFIX + version.name, version.version, description=text)

    def by_digest(self, name: str, digest: str) -> DatasetVersion | None:
        """Return the newest version with a digest (or its first digits); None if there is none."""
        return next((item for item in self.versions(name) if item.digest.startswith(digest)), None)

    def _version(self, name: str, item: Any, aliases: Mapping[str, str]) -> DatasetVersion:
        tags, version = dict(item.tags), str(item.version)
        return DatasetVersion(
            name=name,
            version=version,
            digest=tags.get("digest", ""),
            status=tags.get("status", ""),
            address=self._address(tags, item.run_id),
            registry=self.uri,
            aliases=tuple(alias for alias, at in aliases.items() if at == version),
            tags=tags,
            run_id=str(item.run_id),
            created=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC),
        )

    def _address(self, tags: Mapping[str, str], run_id: str) -> str:
        address = tags.get("address", "")
        if not address:
            # Registered before versions carried their address: the run's input has it.
            inputs = self.client.get_run(run_id).inputs
            found = [] if inputs is None else inputs.dataset_inputs
            address = next((json.loads(item.dataset.source)["address"] for item in found), "")
        return moved(address, self.uri)

    def _what_there_is(self, reference: DatasetReference, aliases: Mapping[str, str]) -> str:
        versions = sorted((int(item.version) for item in self.versions(reference.name)), reverse=True)
        listed = ", ".join(map(str, versions[:10])) + (", ..." if len(versions) > 10 else "")
        named = ", ".join(f"@{alias} (version {version})" for alias, version in aliases.items()) or "none"
        if reference.alias is not None:
            begin = f"data set '{reference.name}' has no alias '{reference.alias}'"
        elif reference.version is not None:
            begin = f"data set '{reference.name}' has no version {reference.version}"
        else:
            begin = f"'{reference}' names neither version nor alias; write {reference}@{CHAMPION} or {reference}/1"
        return f"{begin}; it has versions {listed or 'none'} and aliases {named}"


def pages(fetch: Callable[[str | None], Any]) -> list[Any]:
    """Return all items of a search that MLflow answers page by page.

    Args:
        fetch: asks for the page after a token; None: the first.
    """
    found: list[Any] = []
    token = None
    while True:
        page = fetch(token)
        found += list(page)
        token = page.token
        if not token:
            return found


def missing(error: MlflowException) -> bool:
    """Return whether an error says that there is no such model, version or alias."""
    return error.error_code in _MISSING


def moved(address: str, uri: str) -> str:
    """Return where a data set is now that was registered at an address.

    A workspace that was moved or copied as a whole, its embedded store with it, is still sound: the data set then lies
    beside the store.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if "://" in address or not uri.startswith("sqlite:///") or database.name != DATABASE:
        return address
    if (Path(address) / JSON_NAME).is_file():
        return address
    beside = database.parent / Path(*Path(address).parts[-2:])
    return str(beside) if (beside / JSON_NAME).is_file() else address

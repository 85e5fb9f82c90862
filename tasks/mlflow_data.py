"""MLflow's view of a pseudo-label data set: ``Dataset`` and ``DatasetSource`` classes, declared as entry points."""

# No postponed annotations here: MLflow reads the constructor's return type.
import json
from pathlib import Path
from typing import Any, Self

import pandas as pd
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.entities import Dataset as DatasetEntity

from rfss_core.datasets import PseudoLabelSet, load
from rfss_core.datasets.manifest import JSON_NAME
from rfss_core.errors import CorruptStoreError, RfssError
from rfss_core.store import Workspace
from rfss_core.store.files import Files

DIGEST_DIGITS = 36
"""MLflow keeps no more of a digest."""


class PseudoLabelSource(DatasetSource):
    """A folder that holds a pseudo-label data set's manifest and masks.

    Args:
        address: folder or fsspec URL of the data set.
        version: its version in the data registry, if it is registered.
    """

    def __init__(self, address: str, version: str | None = None) -> None:
        self.address = address
        self.version = version

    @staticmethod
    def _get_source_type() -> str:
        return "rfss"

    def load(self, **options: Any) -> PseudoLabelSet:
        """Load the data set and verify every file's sha256.

        Args:
            **options: as for :func:`rfss_core.datasets.load`, for example ``verify="labels"``.

        Raises:
            InputNotFoundError: the data set is gone.
            CorruptStoreError: files changed or vanished; the message names them.
        """
        # Whoever asks a run for its input does not make it the input of another one.
        return load(Files(self.address).url, **{"log_input": False, **options})

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        if not isinstance(raw_source, str | Path):
            return False
        try:
            return Files(raw_source).exists(JSON_NAME)
        except (RfssError, ValueError):
            return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> Self:
        return cls(str(raw_source))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"address": self.address} | ({} if self.version is None else {"version": self.version})

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> Self:
        """Rebuild the source from :meth:`to_dict`'s form."""
        return cls(source_dict["address"], source_dict.get("version"))


class SupportSource(DatasetSource):
    """The support set of a labelling run, as its workspace stores it.

    Args:
        workspace: folder or URL of the workspace.
        key: key of stage index there.
    """

    TYPE = "rfss-support"

    def __init__(self, workspace: str, key: str) -> None:
        self.workspace = workspace
        self.key = key

    @staticmethod
    def _get_source_type() -> str:
        return SupportSource.TYPE

    def load(self, **_: Any) -> pd.DataFrame:
        """Read the table of support slices: one row a slice, with its case, patient, classes and digest.

        Raises:
            InputNotFoundError: the workspace is out of reach.
            StoreError: it holds the support set no more.
        """
        return Workspace.open(self.workspace, create=False).stage("index", self.key).read_table("support", "slices")

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:  # noqa: ARG004
        # Only a run knows its support set; no path means one.
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> Self:
        raise NotImplementedError(f"'{raw_source}' names no support set; ask a run for its input")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"workspace": self.workspace, "key": self.key}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> Self:
        """Rebuild the source from :meth:`to_dict`'s form."""
        return cls(source_dict["workspace"], source_dict["key"])


class PseudoLabelDataset(Dataset):
    """A pseudo-label data set as a run's input.

    Args:
        source: where its manifest and masks are.
        name: name of the data set.
        digest: sha256 of its manifest; MLflow keeps the first 36 characters at most.
        profile: counts and held-out figures, small and JSON-able.
    """

    def __init__(self, source: PseudoLabelSource, name: str, digest: str, profile: dict[str, Any]) -> None:
        self._profile, self._rfss_source = profile, source
        super().__init__(source, name, digest[:DIGEST_DIGITS])

    @classmethod
    def of(cls, dataset: PseudoLabelSet, name: str | None = None) -> Self:
        """Return the MLflow data set of a loaded one, under another name if one is given."""
        counts = {"cases": len(dataset.manifest.entries), **dataset.manifest.decisions}
        profile = {**counts, "classes": {str(value): name for value, name in dataset.classes.items()}}
        if dataset.version is not None:
            profile["version"] = dataset.version
        return cls(PseudoLabelSource(dataset.folder, dataset.version), name or dataset.name, dataset.digest, profile)

    def _compute_digest(self) -> str:
        return self._rfss_source.load(verify="none").digest[:DIGEST_DIGITS]

    @property
    def profile(self) -> dict[str, Any]:
        """Counts and held-out figures."""
        return self._profile

    @property
    def schema(self) -> None:
        """None: images and masks have no columns."""
        return

    def to_dict(self) -> dict[str, str]:
        """Return the string dictionary that MLflow stores."""
        return {**super().to_dict(), "profile": json.dumps(self._profile)}

    def entity(self) -> DatasetEntity:
        """Return the form in which MLflow's client logs it."""
        return DatasetEntity(**self.to_dict())


def from_rfss(
    path: str | Path, name: str | None = None, digest: str | None = None, **options: Any
) -> PseudoLabelDataset:
    """Make an MLflow data set of a pseudo-label data set (``mlflow.data.from_rfss``).

    Args:
        path: ``name@alias``, ``name/version``, or the data set's folder or URL.
        name: name to log; default: the manifest's.
        digest: digest that it must have, or its first digits.
        **options: as for :func:`rfss_core.datasets.load`.

    Returns:
        The data set, for ``mlflow.log_input``.

    Raises:
        CorruptStoreError: the data set has another digest, or its files changed or vanished.
        RfssError: as :func:`rfss_core.datasets.load` raises them.
    """
    dataset = load(path, **{"log_input": False, **options})
    if digest is not None and not dataset.digest.startswith(digest):
        raise CorruptStoreError(
            f"data set '{dataset}' at '{dataset.folder}' has digest {dataset.digest[:DIGEST_DIGITS]}, not {digest}; "
            "load the right one"
        )
    return PseudoLabelDataset.of(dataset, name)

"""MLflow's view of a pseudo-label data set: ``Dataset`` and ``DatasetSource`` classes, declared as entry points."""

# No postponed annotations here: MLflow reads the constructor's return type.
import json
from pathlib import Path
from typing import Any, Self

from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource

from rfss_core.datasets import DatasetManifest, read_dataset


class PseudoLabelSource(DatasetSource):
    """A folder that holds a pseudo-label data set's manifest and masks.

    Args:
        address: folder or fsspec URL of the data set.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @staticmethod
    def _get_source_type() -> str:
        return "rfss"

    def load(self, **_: Any) -> DatasetManifest:
        """Read the manifest and verify every file's sha256.

        Raises:
            InputNotFoundError: the data set is gone.
            CorruptStoreError: files changed or vanished; the message names them.
        """
        return read_dataset(self.address)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, (str, Path)) and (Path(raw_source) / "manifest.json").is_file()

    @classmethod
    def _resolve(cls, raw_source: Any) -> Self:
        return cls(str(raw_source))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"address": self.address}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> Self:
        """Rebuild the source from :meth:`to_dict`'s form."""
        return cls(source_dict["address"])


class PseudoLabelDataset(Dataset):
    """A pseudo-label data set as a run's input.

    Args:
        source: where its manifest and masks are.
        name: name of the data set.
        digest: sha256 of its manifest; MLflow keeps the first 36 characters at most.
        profile: counts and held-out figures, small and JSON-able.
    """

    def __init__(self, source: PseudoLabelSource, name: str, digest: str, profile: dict[str, Any]) -> None:
        self._profile = profile
        super().__init__(source, name, digest[:36])

    def _compute_digest(self) -> str:
        return str(self.source.load().digest)[:36]

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


def from_rfss(path: str, name: str | None = None, digest: str | None = None) -> PseudoLabelDataset:
    """Make an MLflow data set from a folder with a pseudo-label data set (``mlflow.data.from_rfss``).

    Args:
        path: the data set's folder.
        name: name to log; default: the manifest's.
        digest: digest to log; default: the manifest's.

    Returns:
        The data set, for ``mlflow.log_input``.
    """
    source = PseudoLabelSource(path)
    manifest = source.load()
    return PseudoLabelDataset(
        source, name or manifest.name, digest or manifest.digest, {"cases": len(manifest.entries)}
    )

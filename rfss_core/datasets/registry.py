"""Registry of data sets: what turns ``name@alias`` into a folder.

The library knows no tracking server. A registry is an object that an installed package declares as an entry point of
group :data:`GROUP`; RFSS's own, over MLflow, is ``tasks.dataset_hook``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast

from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import SettingsError

if TYPE_CHECKING:
    from rfss_core.datasets.pseudo_label_set import PseudoLabelSet

GROUP = "rfss.dataset_registry"
"""Entry points that give a :class:`DatasetRegistry`."""
VIEW_GROUP = "rfss.dataset_view"
"""Entry points that give a function of a :class:`PseudoLabelSet`, for libraries that this one does not import."""


@dataclass(frozen=True)
class RegisteredDataset:
    """One version of a registered data set."""

    name: str
    version: str
    digest: str
    """sha256 of the manifest's content."""
    status: str
    """``accepted`` or ``rejected`` by the quality gate."""
    address: str
    """Folder or URL of the data set, as it was registered."""
    registry: str
    """Where it is registered, for example an MLflow tracking URI."""
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


class DatasetRegistry(Protocol):
    """What a registry can do for the library."""

    def locate(self, reference: DatasetReference, registry: str | None, workspace: str | None) -> RegisteredDataset:
        """Return the version that a reference means.

        Raises:
            UnknownDatasetError: there is none; the message lists what there is.
            RegistryError: the registry does not answer.
            RegistryAccessError: it refuses the credentials.
        """

    def loaded(self, dataset: PseudoLabelSet, context: str) -> bool:
        """Note a data set as the input of the training run that is active in this process; return whether one is."""


def find_registry(*, needed: bool = True) -> DatasetRegistry | None:
    """Return the installed registry, the first by name.

    Args:
        needed: raise an error if there is none.

    Raises:
        SettingsError: none is installed, and one is needed.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    if found:
        return cast("DatasetRegistry", found[0].load())
    if needed:
        raise SettingsError(
            f"no installed package resolves names of data sets (entry point group '{GROUP}'); install RFSS again "
            "(pip install rfss), or name the data set's folder"
        )
    return None


def find_view(name: str) -> Any:
    """Return the function that an entry point of :data:`VIEW_GROUP` declares under a name.

    Raises:
        SettingsError: none is installed.
    """
    found: tuple[EntryPoint, ...] = tuple(entry_points(group=VIEW_GROUP, name=name))
    if not found:
        raise SettingsError(
            f"nothing installed provides '{name}' (entry point group '{VIEW_GROUP}'); install RFSS again"
        )
    return found[0].load()

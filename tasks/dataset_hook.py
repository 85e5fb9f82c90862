"""What :func:`rfss_core.datasets.load` asks of MLflow (entry point of group ``rfss.dataset_registry``)."""

from __future__ import annotations

from rfss_core.datasets.pseudo_label_set import PseudoLabelSet
from rfss_core.datasets.reference import DatasetReference
from rfss_core.datasets.registry import RegisteredDataset


def locate(reference: DatasetReference, registry: str | None, workspace: str | None) -> RegisteredDataset:
    """Return the version that a reference means.

    Args:
        reference: name with alias or version.
        registry: MLflow tracking URI; see :func:`tasks.tracking.registry_uri` for what counts without one.
        workspace: a workspace with an embedded store.

    Raises:
        UnknownDatasetError: there is none; the message lists what there is.
        RegistryError: the store does not answer.
        RegistryAccessError: it refuses the credentials.
        SettingsError: nothing says where data sets are registered.
    """
    # MLflow takes seconds to import; naming a folder does without it.
    from tasks.registry import DataRegistry
    from tasks.tracking import registry_uri

    return DataRegistry(registry_uri(registry, workspace)).find(reference)


def loaded(dataset: PseudoLabelSet, context: str) -> bool:
    """Log a data set as the input of the active MLflow run; return whether one is active."""
    import mlflow

    from tasks.mlflow_data import PseudoLabelDataset

    if mlflow.active_run() is None:
        return False
    mlflow.log_input(PseudoLabelDataset.of(dataset), context=context, tags={"rfss.dataset": str(dataset)})
    return True

"""Loading: from a name, a folder or a URL to a verified data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rfss_core.datasets.manifest import JSON_NAME, read_dataset
from rfss_core.datasets.origin import LATEST
from rfss_core.datasets.pseudo_label_set import PseudoLabelSet, Verification
from rfss_core.datasets.reference import DatasetReference, is_folder
from rfss_core.datasets.registry import RegisteredDataset, find_registry
from rfss_core.errors import CorruptStoreError, InputError, InputNotFoundError
from rfss_core.store.files import Files


def load(
    reference: str | Path,
    *,
    registry: str | Path | None = None,
    workspace: str | Path | None = None,
    folder: str | Path | None = None,
    images: str | Path | None = None,
    verify: Verification = "all",
    log_input: bool = True,
) -> PseudoLabelSet:
    """Load a pseudo-label data set exactly as it was registered.

    Args:
        reference: ``name@alias`` (``hearts@champion``), ``name/version`` (``hearts/3``), or the folder or URL of a data
            set, or of a workspace (then its latest). A name goes to the registry unless a folder of that name exists.
        registry: where names are registered: an MLflow tracking URI. Default: that of ``workspace``; else what
            ``mlflow.set_tracking_uri`` or ``MLFLOW_TRACKING_URI`` says; else that of the workspace which
            ``RFSS_WORKSPACE`` names, or which is the current folder.
        workspace: a workspace whose embedded registry (its ``mlflow.db``) holds the name.
        folder: a copy of the data set, to be read instead of the address that is registered; its digest must match.
        images: folder or glob of the source images, to be read instead of the workspace's copies.
        verify: ``all`` hashes pseudo-labels, images and uncertainties; ``labels`` the pseudo-labels; ``none`` nothing
            but the manifest. Label files are hashed again whenever they are read.
        log_input: note the data set as the input of the MLflow run that is active in this process, if one is.

    Returns:
        The data set.

    Raises:
        UnknownDatasetError: unknown name, version or alias; the message lists what there is.
        RegistryError: the registry does not answer.
        RegistryAccessError: it refuses the credentials.
        InputNotFoundError: there is no data set at the folder.
        CorruptStoreError: files changed or vanished; they are named.
        InputError: the reference is none.
    """
    registered = None
    if is_folder(reference):
        address = _dataset_folder(str(reference))
    else:
        resolver = find_registry()
        assert resolver is not None
        registered = resolver.locate(
            DatasetReference.parse(str(reference)),
            None if registry is None else str(registry),
            None if workspace is None else str(workspace),
        )
        address = registered.address if folder is None else _dataset_folder(str(folder))
    dataset = PseudoLabelSet(_read_manifest(address, registered), registered, None if images is None else str(images))
    dataset.verify(verify)
    if log_input and _run_may_be_active():
        dataset.log_input()
    return dataset


def load_many(references: Sequence[str | Path], **options: Any) -> list[PseudoLabelSet]:
    """Load several data sets to train on together.

    Args:
        references: as for :func:`load`.
        **options: as for :func:`load`.

    Returns:
        The data sets, in order.

    Raises:
        InputError: there is no reference, or the class lists differ; the message shows them.
    """
    if not references:
        raise InputError("no data set was named; give at least one")
    found = [load(reference, **options) for reference in references]
    check_classes(found)
    return found


def check_classes(datasets: Sequence[PseudoLabelSet]) -> None:
    """Refuse data sets whose labels do not mean the same.

    Raises:
        InputError: the class lists differ; the message shows them.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if other.classes != first.classes:
            raise InputError(
                f"data sets '{first}' and '{other}' do not have the same classes ({first.classes} against "
                f"{other.classes}); train on one of them, or label again with the same imaging.classes"
            )


def _dataset_folder(text: str) -> str:
    """Return the data set's folder that a folder means: itself, or a workspace's latest."""
    files = Files(text)
    if files.exists(JSON_NAME) or not files.exists(LATEST):
        return files.url
    return f"{files.url}/{files.read_bytes(LATEST).decode().strip()}"


def _read_manifest(address: str, registered: RegisteredDataset | None) -> Any:
    try:
        manifest = read_dataset(address, verify=False)
    except InputNotFoundError as error:
        if registered is None:
            raise
        raise InputNotFoundError(
            f"data set '{registered.name}' version {registered.version} was registered at '{address}', where there is "
            f"none now, or which this machine does not reach; mount it, or load with folder= naming a copy"
        ) from error
    if registered is not None and manifest.digest != registered.digest:
        raise CorruptStoreError(
            f"{JSON_NAME} at '{address}' is not the manifest of '{registered.name}' version {registered.version}: its "
            f"digest is {manifest.digest[:16]}, registered is {registered.digest[:16]}; restore it, or name the right "
            "folder"
        )
    return manifest


def _run_may_be_active() -> bool:
    # A script that never imported MLflow has no run of its own; importing it here would cost seconds.
    return "mlflow" in sys.modules or "MLFLOW_RUN_ID" in os.environ

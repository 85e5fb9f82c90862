"""Tracking: which MLflow store is meant, and what its errors mean to a user."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from rfss_core.errors import InputNotFoundError, RegistryAccessError, RegistryError, SettingsError
from rfss_core.store.files import Files
from rfss_core.store.workspace import MARK

DATABASE = "mlflow.db"
"""The embedded store, in a workspace's folder."""
WORKSPACE_VARIABLE = "RFSS_WORKSPACE"
"""Names the workspace whose embedded store is meant where nothing else says."""
_SERVERS = ("http://", "https://")
_ANSWER_S = 10.0
_FRESH_S = 2.0
_answered: dict[str, float] = {}
"""When each server answered last, on the monotonic clock."""
_STOPPED = "the MLflow server at {uri} stopped answering; start it and try again"
_REFUSALS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}


def tracking_uri(workspace: Files) -> str:
    """Return ``MLFLOW_TRACKING_URI``, or the workspace's own sqlite store: where a run on it registers.

    Raises:
        SettingsError: the workspace is an object store, where sqlite cannot live, and the variable is not set.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    root = workspace.local_path(".")
    if root is None:
        raise SettingsError(
            f"workspace '{workspace.url}' is an object store and cannot hold MLflow's sqlite file; "
            "set MLFLOW_TRACKING_URI to an MLflow server or a local sqlite:/// file"
        )
    return _sqlite(root)


def check_tracking(workspace: Files) -> None:
    """Make sure, before hours of work, that a run on a workspace can be registered at its end.

    Raises:
        SettingsError: the workspace is an object store and ``MLFLOW_TRACKING_URI`` is not set.
        RegistryError: the server does not answer.
        RegistryAccessError: it refuses the credentials.
    """
    uri = tracking_uri(workspace)
    if uri.startswith(_SERVERS):
        client = connect(uri)
        with answering(uri):
            client.search_experiments(max_results=1)


def registry_uri(registry: str | None = None, workspace: str | None = None) -> str:
    """Return the MLflow store that names of data sets are looked up in.

    Args:
        registry: a tracking URI, or a workspace's folder.
        workspace: a workspace's folder or URL.

    Returns:
        In this order: ``registry``; the store in ``workspace``; what ``mlflow.set_tracking_uri`` or
        ``MLFLOW_TRACKING_URI`` says; the store in the workspace that ``RFSS_WORKSPACE`` names; the store in the current
        folder, if that is a workspace.

    Raises:
        InputNotFoundError: a workspace was named that holds no store.
        SettingsError: nothing says which store is meant.
    """
    if registry is not None and "://" in registry:
        return registry
    for named in (registry, workspace):
        if named is None:
            continue
        if found := _store_in(named):
            return found
        if named is workspace and mlflow.is_tracking_uri_set():
            break
        raise InputNotFoundError(
            f"workspace '{named}' holds no {DATABASE}: no run has registered a data set there; if its runs register "
            "on a server, set MLFLOW_TRACKING_URI to it"
        )
    if mlflow.is_tracking_uri_set():
        return str(mlflow.get_tracking_uri())
    if named := os.environ.get(WORKSPACE_VARIABLE):
        if found := _store_in(named):
            return found
        raise InputNotFoundError(f"{WORKSPACE_VARIABLE} names '{named}', which holds no {DATABASE}; name a workspace")
    if Path(MARK).is_file() and (found := _store_in(".")):
        return found
    raise SettingsError(
        "nothing says where data sets are registered; set MLFLOW_TRACKING_URI to an MLflow server or store, or "
        f"{WORKSPACE_VARIABLE} to a workspace, or name one (--workspace, workspace=)"
    )


def connect(uri: str) -> MlflowClient:
    """Return a client of a store that answers.

    Raises:
        RegistryError: the server is away. Found within seconds: MLflow's own client would try for minutes.
        RegistryAccessError: it refuses the credentials.
    """
    if not _reached(uri):
        raise RegistryError(f"the MLflow server at {uri} does not answer; start it, or set the address right")
    with answering(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def answering(uri: str, *, patient: bool = False) -> Iterator[None]:
    """Turn errors of MLflow that are about the server or the credentials into RFSS's own.

    A server that is away is found out before MLflow's client is asked, which would try for four minutes.

    Args:
        uri: the store.
        patient: let MLflow try: in the midst of hours of work it is worth waiting for a server that starts anew.

    Raises:
        RegistryError: the store does not answer or is broken.
        RegistryAccessError: it refuses the credentials.
    """
    if not patient and not _reached(uri):
        raise RegistryError(_STOPPED.format(uri=uri))
    try:
        yield
    except MlflowException as error:
        if error.error_code in _REFUSALS or "error code 401" in str(error):
            user = os.environ.get("MLFLOW_TRACKING_USERNAME")
            who = "without a user name" if user is None else f"of user '{user}'"
            raise RegistryAccessError(
                f"the MLflow server at {uri} refuses the credentials {who}; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD to those of a user who may do this"
            ) from error
        if isinstance(error.__cause__, requests.RequestException) or "Max retries exceeded" in str(error):
            raise RegistryError(_STOPPED.format(uri=uri)) from error
        raise
    except requests.RequestException as error:
        raise RegistryError(_STOPPED.format(uri=uri)) from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise RegistryError(f"MLflow's store {uri} cannot be used: {reason}; restore it, or name another") from error


def metric_name(name: str) -> str:
    """Return a name as MLflow allows it for a metric; names of classes are the user's."""
    return re.sub(r"[^A-Za-z0-9_.\- /]", "_", name)


def _reached(uri: str) -> bool:
    """Return whether a store is no server, or one that answers; one that just did is not asked again."""
    if not uri.startswith(_SERVERS) or time.monotonic() - _answered.get(uri, -_FRESH_S) < _FRESH_S:
        return True
    try:
        # Every server has it, and it needs no credentials.
        requests.get(f"{uri.rstrip('/')}/health", timeout=_ANSWER_S)
    except requests.RequestException:
        return False
    _answered[uri] = time.monotonic()
    return True


def _store_in(workspace: str) -> str | None:
    root = Files(workspace).local_path(".")
    return _sqlite(root) if root is not None and (root / DATABASE).is_file() else None


def _sqlite(root: Path) -> str:
    return f"sqlite:///{root.resolve() / DATABASE}"

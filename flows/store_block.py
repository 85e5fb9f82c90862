"""Object stores as Prefect blocks: a place and its credentials, kept by the server and named in a run's parameters."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, TypeVar

import httpx
from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.settings import LabelSettings

SCHEME = "block://"
_ADDRESS = re.compile(r"block://([a-z0-9][a-z0-9-]*)((?:/[A-Za-z0-9_.-]+)*)/?")

Settings = TypeVar("Settings", bound=LabelSettings)


class RfssStore(Block):
    """A bucket, or a prefix of one, for workspaces. A run names it as its workspace: ``block://NAME/PATH``."""

    _block_type_name: ClassVar[str] = "RFSS store"
    _block_type_slug: ClassVar[str] = "rfss-store"
    _description: ClassVar[str] = "Where workspaces live on an object store, with its credentials."

    url: str = Field(
        pattern=r"^(s3|s3a)://[^/]+", description="Bucket and prefix, for example s3://hospital/labelling.", title="URL"
    )
    access_key_id: SecretStr | None = Field(None, description="Default: what the worker's environment has.")
    secret_access_key: SecretStr | None = Field(None, description="Belongs to the access key.")
    session_token: SecretStr | None = Field(None, description="Of temporary credentials.")
    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address of an S3-compatible server. Default: Amazon's.",
        title="Endpoint",
    )
    region: str | None = Field(None, description="Region of the bucket.")

    def environment(self) -> dict[str, str]:
        """Return the variables by which S3 clients, of worker processes too, find the store."""
        secrets = {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_SESSION_TOKEN": self.session_token,
        }
        found = {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
        plain = {"AWS_ENDPOINT_URL_S3": self.endpoint_url, "AWS_DEFAULT_REGION": self.region}
        return found | {name: value for name, value in plain.items() if value is not None}


@contextmanager
def resolved(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose workspace is a URL; the block's credentials are in the environment meanwhile.

    They reach the worker processes that the run starts, and neither parameters, logs nor the workspace. Workers of a
    scheduler that runs already have an environment of their own, which must hold them.

    Args:
        settings: of a run; untouched where the workspace is no ``block://`` address.

    Raises:
        SettingsError: the address names no block.
        InputNotFoundError: the server has no such block.
    """
    if not settings.workspace.startswith(SCHEME):
        yield settings
        return
    match = _ADDRESS.fullmatch(settings.workspace)
    if match is None:
        raise SettingsError(f"workspace '{settings.workspace}' names no store; write block://NAME/PATH")
    name, path = match.groups()
    if any(part in ("..", ".") for part in path.split("/")):
        raise SettingsError(f"workspace '{settings.workspace}' leaves its store; write block://NAME/PATH")
    store = _load(name)
    before = {variable: os.environ.get(variable) for variable in store.environment()}
    os.environ.update(store.environment())
    try:
        yield settings.model_copy(update={"workspace": f"{store.url.rstrip('/')}{path}"})
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def _load(name: str) -> RfssStore:
    try:
        block: RfssStore = RfssStore.load(name)  # type: ignore[assignment]
    except (ValueError, httpx.HTTPStatusError) as error:
        raise InputNotFoundError(
            f"there is no store '{name}' on the Prefect server; create a block of type RFSS store with this name "
            "(Blocks in the UI), or give the workspace as a folder or URL"
        ) from error
    return block

"""The folder of one service: databases, logs, addresses, and a lock that one ``rfss serve`` holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from rfss_core.errors import InputError, InputNotFoundError

DEFAULT = "~/.rfss"
VARIABLE = "RFSS_HOME"
_STATE = "service.json"
_LOCK = "service.lock"


class Addresses(BaseModel):
    """Where a service is."""

    pid: int
    """Process of ``rfss serve``."""
    prefect_api: str
    prefect_ui: str
    mlflow: str
    runner: str
    """Name of the runner, unique to this start."""
    deployments: list[str]
    """``flow/deployment``."""
    metrics: str | None = None
    """Where Prometheus finds the metrics of the runs; None where they are not served."""


class Home:
    """The folder.

    Args:
        folder: default: ``RFSS_HOME``, else ``~/.rfss``.

    Raises:
        InputError: it cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = (folder or Path(os.environ.get(VARIABLE, DEFAULT))).expanduser().absolute()
        try:
            for part in (self.folder, self.logs, self.folder / "prefect"):
                # Runs' parameters and logs are no business of other users of this machine.
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"folder '{self.folder}' cannot be used: {error.strerror}; give another with --home"
            ) from error

    @property
    def logs(self) -> Path:
        """Folder of the processes' logs."""
        return self.folder / "logs"

    @property
    def metrics(self) -> Path:
        """Folder in which each run keeps its metrics."""
        return self.folder / "metrics"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against another ``rfss serve``; a process that dies, however, lets go.

        Raises:
            InputError: another one holds it.
        """
        with (self.folder / _LOCK).open("a+") as lock:
            _lock(lock, self.folder)
            try:
                yield
            finally:
                (self.folder / _STATE).unlink(missing_ok=True)

    def write(self, addresses: Addresses) -> None:
        """Say where the service is, for ``rfss serve --check`` and scripts."""
        fresh = self.folder / f".{_STATE}"
        fresh.write_text(addresses.model_dump_json(indent=2) + "\n", encoding="utf-8")
        fresh.replace(self.folder / _STATE)

    def read(self) -> Addresses:
        """Return where the service is.

        Raises:
            InputNotFoundError: none runs here.
        """
        try:
            return Addresses.model_validate_json((self.folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise InputNotFoundError(
                f"no service runs in '{self.folder}'; start one with `rfss serve --home {self.folder}`"
            ) from error


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise InputError(
            f"another `rfss serve` (process {owner}) uses '{folder}'; stop it, or give another folder with --home"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()

"""The folder of ``rfss secure``: what is in it, how it is written, and the environment that it stands for."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from flows.secure.certificates import hosts_of, new_authority, new_certificate
from rfss_core.errors import InputError, InputNotFoundError, SettingsError

_BYTES = 24
_PLAIN = re.compile(r"[\w./+@:=,-]+")
_USER, _ADMIN = "rfss", "admin"
_COMM = "DASK_DISTRIBUTED__COMM__"
_SERVERS_ONLY = ("POSTGRES_", "AWS_")
"""Of containers that ``rfss serve`` does not start; AWS's would hide the user's own."""


class SecureFolder:
    """Passwords and certificates.

    Args:
        folder: where they are, or shall be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.tls = self.folder / "tls"
        self.authority, self.authority_key = self.tls / "ca.pem", self.folder / "ca-key.pem"
        self.certificate, self.key = self.tls / "dask.pem", self.tls / "dask-key.pem"
        self.secrets, self.client = self.folder / "secrets.env", self.folder / "client.env"
        self.mlflow, self.accounts = self.folder / "basic_auth.ini", self.folder / "mlflow_accounts.db"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is written."""
        return (
            self.authority, self.authority_key, self.certificate, self.key, self.secrets, self.client, self.mlflow
        )  # fmt: skip

    @property
    def exists(self) -> bool:
        """Whether it has been written, in whole or in part."""
        return any(path.exists() for path in self.files)

    def write(self, hosts: Sequence[str], *, force: bool = False) -> None:
        """Make an authority, a certificate and passwords.

        Args:
            hosts: names and addresses in the certificate.
            force: replace what is there; MLflow's accounts go with it.

        Raises:
            InputError: there is something, and ``force`` is off; or the folder cannot be written.
        """
        if self.exists and not force:
            raise InputError(
                f"'{self.folder}' holds passwords and certificates already, and others may use them; --renew makes a "
                "new certificate of the same authority, --force replaces all"
            )
        if not _PLAIN.fullmatch(str(self.folder)):
            raise InputError(
                f"'{self.folder}' holds characters that shells and compose files read differently; name a folder "
                "without spaces and signs"
            )
        authority, authority_key = new_authority()
        certificate, key = new_certificate(authority, authority_key, hosts)
        password, admin = secrets.token_urlsafe(_BYTES), secrets.token_urlsafe(_BYTES)
        client = self._client_environment(password, admin)
        server = {
            "PREFECT_SERVER_API_AUTH_STRING": f"{_USER}:{password}",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(_BYTES),
            "POSTGRES_PASSWORD": secrets.token_urlsafe(_BYTES),
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10).upper(),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(_BYTES),
            "RFSS_TLS": str(self.tls),
        }
        if force:
            # MLflow takes the administrator's password from here only where it knows no administrator yet.
            for name in ("", "-wal", "-shm"):
                self.accounts.with_name(self.accounts.name + name).unlink(missing_ok=True)
        for path, data in (
            (self.authority_key, authority_key),
            (self.authority, authority),
            (self.key, key),
            (self.certificate, certificate),
            (self.mlflow, self._mlflow_configuration(admin)),
            (self.client, _lines(client)),
            (self.secrets, _lines({**client, **server})),
        ):
            self._write(path, data)

    def renew(self, hosts: Sequence[str]) -> None:
        """Make a new certificate of the same authority; passwords stay.

        Args:
            hosts: names and addresses in the certificate, besides those of the old one.

        Raises:
            InputNotFoundError: there is no authority.
            InputError: its files are damaged.
        """
        try:
            known = hosts_of(self.certificate.read_bytes()) if self.certificate.exists() else []
            certificate, key = new_certificate(
                self.authority.read_bytes(), self.authority_key.read_bytes(), list(dict.fromkeys([*known, *hosts]))
            )
        except FileNotFoundError as error:
            raise InputNotFoundError(f"'{error.filename}' is missing; run `rfss secure {self.folder}` first") from error
        except (ValueError, TypeError) as error:
            raise InputError(
                f"the authority in '{self.folder}' is damaged ({error}); start anew with --force"
            ) from error
        self._write(self.key, key)
        self._write(self.certificate, certificate)

    def environment(self) -> dict[str, str]:
        """Return the variables that servers and runs of this machine need.

        Raises:
            InputNotFoundError: there are none.
            SettingsError: others may read them, or a line is no variable.
        """
        if not self.secrets.is_file():
            raise InputNotFoundError(f"'{self.folder}' holds no passwords; make some with `rfss secure {self.folder}`")
        for path in (self.secrets, self.key, self.mlflow):
            if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise SettingsError(f"'{path}' can be read by others; run `chmod -R go= '{self.folder}'`")
        found = {}
        for line in self.secrets.read_text(encoding="utf-8").splitlines():
            name, equals, value = line.partition("=")
            if line.strip() and not line.startswith("#"):
                if not equals:
                    raise SettingsError(f"'{self.secrets}' has a line that is no NAME=VALUE; restore the file")
                found[name.strip()] = value
        return {name: value for name, value in found.items() if not name.startswith(_SERVERS_ONLY)} | {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.mlflow)
        }

    def _client_environment(self, password: str, admin: str) -> dict[str, str]:
        return {
            "PREFECT_API_AUTH_STRING": f"{_USER}:{password}",
            "MLFLOW_TRACKING_USERNAME": _ADMIN,
            "MLFLOW_TRACKING_PASSWORD": admin,
            f"{_COMM}REQUIRE_ENCRYPTION": "True",
            f"{_COMM}TLS__CA_FILE": str(self.authority),
            # Executor `local` starts scheduler and workers of its own.
            **self._dask_environment("client", "scheduler", "worker"),
        }

    def _dask_environment(self, *roles: str) -> dict[str, str]:
        return {
            f"{_COMM}TLS__{role.upper()}__{what}": str(path)
            for role in roles
            for what, path in (("CERT", self.certificate), ("KEY", self.key))
        }

    def _mlflow_configuration(self, password: str) -> bytes:
        # The parser knows interpolation: a percent sign would begin one, and these passwords have none.
        return (
            "# Of `mlflow server --app-name basic-auth`: MLFLOW_AUTH_CONFIG_PATH names this file. The password makes\n"
            "# the administrator at the first start; it is changed by MLflow's own API from then on.\n"
            "[mlflow]\n"
            "default_permission = READ\n"
            f"database_uri = sqlite:///{self.accounts}\n"
            f"admin_username = {_ADMIN}\n"
            f"admin_password = {password}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        ).encode()

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file that is its owner's alone from its first byte on."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            for folder in (self.folder, path.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(data)
            partial.replace(path)
        except OSError as error:
            raise InputError(f"'{path}' cannot be written ({error.strerror}); name another folder") from error


def _lines(values: dict[str, str]) -> bytes:
    note = "# Written by `rfss secure`. Passwords: for its owner's eyes alone, in no repository and no image.\n"
    return (note + "".join(f"{name}={value}\n" for name, value in values.items())).encode()

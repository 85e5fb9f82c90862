"""``rfss secure``: passwords and certificates of a service, in one folder."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer


def secure(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write, outside of every repository.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address in the certificate besides this machine's; may be repeated."),
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="A new certificate of the same authority; passwords stay.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace all: authority, certificate, passwords, MLflow's accounts.")
    ] = False,
) -> None:
    """Make passwords for Prefect, MLflow, Postgres and S3, and certificates for Dask."""
    from rich.console import Console

    from flows.secure.certificates import expires
    from flows.secure.folder import SecureFolder
    from rfss_core.errors import SettingsError

    if renew and force:
        raise SettingsError("--renew keeps the passwords and --force replaces them; give one of the two")
    place = SecureFolder(folder)
    hosts = dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname(), *(host or ())])
    if renew:
        place.renew(list(hosts))
    else:
        place.write(list(hosts), force=force)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{'renewed' if renew else 'written'} in '{place.folder}', for your eyes alone:")
    for path, what in (
        (place.tls, f"ca.pem, dask.pem, dask-key.pem: good until {expires(place.certificate.read_bytes()):%Y-%m-%d}"),
        (place.authority_key, "signs further certificates: keep it off the cluster"),
        (place.secrets, "all passwords, for servers and deployments"),
        (place.client, "what a client needs: Prefect, MLflow, Dask"),
        (place.mlflow, "MLflow's configuration with its administrator's password"),
    ):
        console.print(f"  {path.relative_to(place.folder)!s:<16} {what}")
    if renew:
        console.print("next: restart schedulers, workers and `rfss serve`, and copy tls/ to other machines again")
        return
    console.print("next:")
    console.print(f"  one machine   rfss serve --secure {place.folder}")
    console.print(f"  a client      set -a; . {place.client}; set +a")
    console.print("  Dask          after that: dask scheduler --protocol tls; dask worker tls://HOST:8786")
    console.print("                rfss label ... --executor tls://HOST:8786")
    console.print("docs/security.md says more")

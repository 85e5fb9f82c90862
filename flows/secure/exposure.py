"""Exposure: servers that a client speaks to over a network without a password, or with one that anyone may read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SOON = timedelta(days=30)
_SERVERS = (
    ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"),
    ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"),
)


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine alone."""
    return host in LOOPBACK or host.startswith("127.")


def exposures(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line for each weakness that the environment shows; none where all is on this machine or guarded."""
    notes = []
    for name, password in _SERVERS:
        address = urlsplit(environment.get(name, ""))
        if address.scheme not in ("http", "https") or is_loopback(address.hostname or ""):
            continue
        if not environment.get(password):
            notes.append(f"{name} is on another machine and {password} is not set: who else may use it?")
        elif address.scheme == "http":
            notes.append(f"{name} is http: the network reads the password; put TLS before it")
    return notes + _certificate_notes(environment)


def _certificate_notes(environment: Mapping[str, str]) -> list[str]:
    from flows.secure.certificates import expires

    path = environment.get("DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT")
    if not path:
        return []
    try:
        end = expires(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        return [f"Dask's certificate '{path}' cannot be read ({error})"]
    if end < datetime.now(UTC) + _SOON:
        return [f"Dask's certificate '{path}' is good until {end:%Y-%m-%d} only; run `rfss secure DIR --renew`"]
    return []

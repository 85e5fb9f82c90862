"""The processes of ``rfss serve``: found where they run already, else started under a guard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from rfss_core.errors import ExecutionError, PortTakenError

STOP_S = 40.0
POLL_S = 0.2
ANSWER_S = 5.0
UNAUTHORISED = 401


class Guarded:
    """One process that ends with this one, a ``kill -9`` included (:mod:`flows.service.guard`).

    Args:
        name: for messages and the log's file name.
        command: what to run.
        environment: variables besides this process's own.
        logs: folder of ``<name>.log``.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("ab") as said:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "flows.service.guard", *command],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    @property
    def ended(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until it does its work.

        Raises:
            ExecutionError: it ended, or was not there in time.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.ended is not None or time.monotonic() > deadline:
                how = (
                    f"ended with code {self.ended}" if self.ended is not None else f"is not there after {timeout_s:g} s"
                )
                raise ExecutionError(f"{self.name} {how}; '{self.log}' says why: {self.last_line()}")
            time.sleep(POLL_S)

    def last_line(self) -> str:
        """Return the last line of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"

    def stop(self) -> None:
        """End it and all that it started; does nothing where it has ended."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
            return
        self._process.kill()
        self._process.wait()


def prefect_answers(api: str) -> bool:
    """Return whether a Prefect server's API is at this address (``http://host:port/api``)."""
    return _answers(f"{api}/health") and _text(f"{api}/admin/version", "PREFECT_API_AUTH_STRING") is not None


def mlflow_answers(address: str) -> bool:
    """Return whether an MLflow server is at this address, with or without passwords.

    It is never asked for its password here: checking one costs it a second of hashing, and it is asked again and again.
    """
    if _text(f"{address}/health") != "OK":
        return False
    answer = _get(f"{address}/version")
    realm = "" if answer is None else answer.headers.get("www-authenticate", "")
    return answer is not None and (answer.is_success or (answer.status_code == UNAUTHORISED and "mlflow" in realm))


def asks_for_password(url: str) -> bool:
    """Return whether a server refuses a request without credentials."""
    answer = _get(url)
    return answer is not None and answer.status_code == UNAUTHORISED


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def find(host: str, port: int, what: str, option: str, answers: Callable[[], bool]) -> bool:
    """Return whether the server runs already; False where its port is free.

    Raises:
        PortTakenError: something else listens there.
    """
    if is_free(host, port):
        return False
    # A server that another `rfss serve` began a moment ago listens before it answers.
    deadline = time.monotonic() + ANSWER_S
    while not (found := answers()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if not found:
        raise PortTakenError(
            f"port {port} of {host} is taken by something that is no {what} server; stop it, or give another port "
            f"with {option}"
        )
    return True


def _answers(url: str) -> bool:
    return _text(url) is not None


def _text(url: str, credentials: str = "") -> str | None:
    """Return what an address answers, with the credentials that a variable of the environment holds."""
    user, _, password = os.environ.get(credentials, "").partition(":")
    answer = _get(url, (user, password) if user else None)
    return answer.text.strip() if answer is not None and answer.is_success else None


def _get(url: str, credentials: tuple[str, str] | None = None) -> httpx.Response | None:
    try:
        # No proxy of the environment stands between two processes of one machine.
        return httpx.get(url, timeout=ANSWER_S, trust_env=False, auth=credentials)
    except httpx.HTTPError:
        return None

"""The embedded Prefect server of one command: a process that lives no longer than the command's own."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings

from rfss_core.errors import ExecutionError, RfssError, ServerAccessError

STOP_S = 5.0
POLL_S = 0.1


class PrefectServer:
    """Prefect's API in a process of its own, which ends when this one does, a ``kill -9`` included.

    Prefect's own temporary server outlives an owner that is killed, and its class costs the import of the whole server.
    """

    def __init__(self) -> None:
        # A session of its own: Ctrl-C goes to the terminal's whole process group, and the flow has yet to tell the
        # server that the run was interrupted.
        # What it says is shown where it does not start; later it would speak into the command's own lines, at the end
        # of which it may be told to stop in the middle of its bookkeeping.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.server_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
            env={**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)},
        )

    def wait(self, timeout_s: float) -> str:
        """Wait until the API answers, and return its address.

        Raises:
            ExecutionError: the server ended, or was not there in time.
        """
        deadline = time.monotonic() + timeout_s
        assert self._process.stdout is not None
        port = self._process.stdout.readline().decode().strip()
        url = f"http://127.0.0.1:{port}/api"
        while port and self._process.poll() is None and (left := deadline - time.monotonic()) > 0:
            try:
                # No proxy of the environment stands between two processes of one machine.
                if httpx.get(f"{url}/health", timeout=left, trust_env=False).is_success:
                    return url
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
        self._end()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        raise ExecutionError(
            f"the embedded Prefect server did not start (exit code {self._process.returncode}, waited for up to "
            f"{timeout_s:.0f} s{f': {said[0]}' if said else ''}). Set PREFECT_API_URL to use a server of your own"
        )

    def stop(self) -> None:
        """End the server; does nothing where it has ended."""
        self._end()
        self._said.close()

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_lifetime = ExitStack()
_started: list[PrefectServer] = []


def start_prefect_server() -> None:
    """Let a server begin to start, where none is configured, and do not wait: it needs seconds, as our imports do.

    It is stopped at exit, after Prefect's own threads have handed it their last logs and events; stopped before, they
    would knock at a closed door for a minute.
    """
    if not _started and not get_current_settings().api.url:
        _started.append(PrefectServer())
        atexit.register(_started[0].stop)


def ensure_prefect_server() -> None:
    """Use the configured Prefect server, or one of our own for as long as this process lives.

    Raises:
        ServerAccessError: the configured server refuses the credentials.
        ExecutionError: it does not answer; or none is configured, and the embedded one does not start.
    """
    settings = get_current_settings()
    if settings.api.url:
        check_server(settings.api.url)
        return
    start_prefect_server()
    url = _started[0].wait(settings.server.ephemeral.startup_timeout_seconds)
    _lifetime.enter_context(temporary_settings({PREFECT_API_URL: url}))


def refused(url: str, error: httpx.HTTPStatusError) -> RfssError:
    """Return what a Prefect server's answer that is no success means to a user.

    Args:
        url: of the server's API.
        error: the answer.
    """
    code = error.response.status_code
    if code in (401, 403):
        given = PREFECT_API_AUTH_STRING.value()
        does = "refuses what PREFECT_API_AUTH_STRING holds" if given else "asks for a password"
        return ServerAccessError(
            f"the Prefect server at '{url}' {does} ({code}); set PREFECT_API_AUTH_STRING to its user:password"
        )
    return ExecutionError(f"the Prefect server at '{url}' answers with {code}; look at its log")


def check_server(url: str) -> str:
    """Say at the start what would otherwise be a traceback of Prefect's client.

    Args:
        url: of the configured server's API.

    Returns:
        The server's version.

    Raises:
        ServerAccessError: the server refuses the credentials.
        ExecutionError: it does not answer, or with an error.
    """
    try:
        with get_client(sync_client=True) as client:
            # The endpoint asks for credentials where the server does; its health does not.
            return str(client.request("GET", "/admin/version").raise_for_status().json())
    except httpx.HTTPStatusError as error:
        raise refused(url, error) from error
    except httpx.TransportError as error:
        raise ExecutionError(
            f"the Prefect server at '{url}' does not answer ({error or type(error).__name__}); start it "
            "(`rfss serve`), or unset PREFECT_API_URL to run with an embedded one"
        ) from error

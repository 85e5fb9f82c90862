"""The embedded Prefect server of one command."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from functools import partial
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings


class _DetachedServer(SubprocessASGIServer):
    """Prefect's temporary server in a session of its own.

    Ctrl-C goes to all processes of the terminal's foreground group. Prefect's own temporary server would die of it, and
    the flow would wait for minutes to tell it that the run was interrupted.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        ordinary = subprocess.Popen
        subprocess.Popen = partial(ordinary, start_new_session=True)  # type: ignore[assignment, misc]
        try:
            return super()._run_uvicorn_command()
        finally:
            subprocess.Popen = ordinary  # type: ignore[misc]


_lifetime = ExitStack()


def ensure_prefect_server() -> None:
    """Use the configured Prefect server, or start one for as long as this process lives.

    It is stopped at exit, after Prefect's own threads have handed it their last logs and events; stopped before, they
    would knock at a closed door for a minute.
    """
    if get_current_settings().api.url:
        return
    server = _DetachedServer()
    server.start()
    _lifetime.enter_context(temporary_settings({PREFECT_API_URL: server.api_url}))

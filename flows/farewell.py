"""The end of a command whose Prefect server is away: soon."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.spectator import server_answers

RETRIES = 3
"""Of a call that finds no server, after 1, 2 and 4 s. The end of a flow is some such calls; Prefect's own 5 retries
make minutes of them, in which a finished command looks as if it hung."""


@contextlib.contextmanager
def short_farewell() -> Iterator[None]:
    """Let the flows inside give up sooner on a server that is away, and let the process end without telling it more."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
        try:
            yield
        finally:
            if not server_answers():
                drop_events()


def drop_events() -> None:
    """Forget the events that wait for the server: at exit, Prefect's client tries for ten seconds with each of them."""
    # It has no public way to; without the private one the process ends later.
    for service in list(getattr(EventsWorker, "_instances", {}).values()):
        with contextlib.suppress(queue.Empty):
            while True:
                service._queue.get_nowait()  # noqa: SLF001

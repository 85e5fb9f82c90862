"""Where a run's metrics can be read: a port while it lasts, a file while it lasts and after it."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile

from rfss_core.settings import ObservabilitySettings

EVERY_S = 5.0
"""Seconds between two writes of the file."""
LOOPBACK = "127.0.0.1"

log = logging.getLogger("rfss")


@contextmanager
def exported(registry: CollectorRegistry, settings: ObservabilitySettings, file: str) -> Iterator[None]:
    """Serve and write a run's metrics until the end of the block.

    They are a spectator's: a port that is taken or a folder that is full costs them, not the run.

    Args:
        registry: the metrics.
        settings: completed (:meth:`ObservabilitySettings.completed`).
        file: name of the file (:func:`file_name`).
    """
    with ExitStack() as stack:
        if settings.metrics_port is not None:
            _serve(stack, registry, settings.metrics_address or LOOPBACK, settings.metrics_port)
        if settings.metrics_folder is not None:
            stack.enter_context(_written(registry, Path(settings.metrics_folder).expanduser() / file))
        yield


def file_name(flow: str, dataset: str, workspace: str) -> str:
    """Return the name of a run's file, which the next run of the same three takes over."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{flow}-{dataset}").strip(".-")[:80]
    return f"rfss-{slug}-{hashlib.sha256(workspace.encode()).hexdigest()[:8]}.prom"


def _serve(stack: ExitStack, registry: CollectorRegistry, address: str, port: int) -> None:
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        log.warning(
            "metrics are not served: %s port %d cannot be used (%s); give another observability.metrics_port "
            "(RFSS_METRICS_PORT), or 0 for a free one. The run goes on",
            address, port, error.strerror or error,
        )  # fmt: skip
        return

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    stack.callback(stop)
    log.info("metrics at http://%s:%d/metrics", f"[{address}]" if ":" in address else address, server.server_port)


@contextmanager
def _written(registry: CollectorRegistry, path: Path) -> Iterator[None]:
    told = False

    def write() -> None:
        nonlocal told
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(str(path), registry)
        except OSError as error:
            if not told:
                log.warning("metrics are not written to '%s' (%s); the run goes on", path, error.strerror or error)
            told = True

    def go_on() -> None:
        while not over.wait(EVERY_S):
            write()

    over = threading.Event()
    write()
    thread = threading.Thread(target=go_on, name="rfss-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write()

"""One address for Prometheus: the metrics of all runs of a service, present and past, merged from their files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from rfss_core.errors import PortTakenError


class MergedMetrics(Collector):
    """The metrics in a folder of ``.prom`` files, each of which one run writes (:mod:`tasks.exporter`).

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once; where two files have the same sample, that of the newer file."""
        merged: dict[str, Metric] = {}
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        for text in self._texts():
            for family in text_string_to_metric_families(text):
                known = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    key = (sample.name, frozenset(sample.labels.items()))
                    if key not in seen:
                        seen.add(key)
                        known.samples.append(sample)
        yield from merged.values()

    def _texts(self) -> Iterator[str]:
        """Yield the files' content, the newest first; a file that vanishes meanwhile is left out."""
        dated = []
        for path in self._folder.glob("*.prom"):
            try:
                dated.append((path.stat().st_mtime, path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
        for _, text in sorted(dated, reverse=True):
            yield text


@contextmanager
def served_metrics(folder: Path, host: str, port: int) -> Iterator[str]:
    """Serve a folder's metrics until the end of the block; yields their address.

    Raises:
        PortTakenError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(MergedMetrics(folder))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise PortTakenError(
            f"port {port} of {host} cannot be used for metrics ({error.strerror or error}); give another with "
            "--metrics-port"
        ) from error
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

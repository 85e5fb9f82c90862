"""``rfss doctor``: is this installation able to do its work?"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.secure.exposure import exposures

_PACKAGES = (
    "prefect", "dask", "distributed", "zarr", "torch", "transformers", "faiss-cpu", "faiss-gpu", "nibabel", "pydicom",
    "mlflow", "monai", "sam2",
)  # fmt: skip
_OPTIONAL = {"faiss-cpu": "or faiss-gpu", "faiss-gpu": "optional, extra gpu", "sam2": "optional, extra sam2"}


def examine(console: Console) -> bool:
    """Print versions and the outcome of each check; return whether everything needed works."""
    table = Table(title="rfss doctor", title_justify="left")
    table.add_column("what")
    table.add_column("found")
    table.add_row("Python", platform.python_version())
    for package in _PACKAGES:
        table.add_row(package, _version(package))
    notes = exposures()
    table.add_row("exposure", "\n".join(f"[yellow]note:[/] {note}" for note in notes) or "none to be seen here")
    sound = True
    for name, check in _CHECKS.items():
        started = time.perf_counter()
        try:
            outcome = f"[green]works[/] {check()} ({time.perf_counter() - started:.1f} s)"
        except Exception as error:  # noqa: BLE001 - a check's failure is its result
            sound, outcome = False, f"[red]fails[/] {type(error).__name__}: {error}"
        table.add_row(name, outcome)
    console.print(table)
    if not sound:
        console.print("mend what fails above: docs/install.md", highlight=False)
    return sound


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed ({_OPTIONAL[package]})" if package in _OPTIONAL else "[red]not installed[/]"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"CUDA: {torch.cuda.get_device_name(0)}"
    return f"CPU only, {torch.get_num_threads()} threads"


def _models() -> str:
    from rfss_core import FewShotSegmenter, SupportSet

    rng = np.random.default_rng(0)
    images = [rng.random((64, 64), dtype=np.float32) for _ in range(3)]
    masks = [(image > 0.5).astype(np.uint8) for image in images]
    segmenter = FewShotSegmenter.from_preset("tiny").fit(SupportSet.from_arrays(images, masks, classes={1: "bright"}))
    segmenter.segment(images[0], k=2)
    return "preset tiny segments a slice"


def _workers() -> str:
    from dask.distributed import Client

    from tasks.clusters import local_cluster
    from tasks.interrupts import put_off

    with ExitStack() as stack:
        with put_off():
            # The run's own: no fixed port, which another cluster of the machine may hold.
            cluster = stack.enter_context(local_cluster(1))
        client = stack.enter_context(Client(cluster))
        return f"a Dask worker adds 1 and 1: {client.submit(sum, [1, 1]).result(timeout=60)}"


def _prefect() -> str:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from flows.server import check_server
    from flows.service.attendance import unattended

    url = PREFECT_API_URL.value()
    if not url:
        return "no server is configured (PREFECT_API_URL): each command starts its own"
    server = check_server(url)
    with get_client(sync_client=True) as client:
        notes = unattended(client)
    return "\n".join([f"version {server} at {url}", *(f"[yellow]note:[/] {escape(note)}" for note in notes)])


_CHECKS: dict[str, Callable[[], str]] = {
    "device": _device,
    "models": _models,
    "executor local": _workers,
    "Prefect server": _prefect,
}

"""Dask clusters that an executor's name stands for: processes here, GPUs here, a class of one's own, an address."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from dask.distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from rfss_core.errors import ExecutionError, NoDeviceError, RfssError, SettingsError
from rfss_core.settings import ExecutionSettings
from rfss_core.settings.execution import ClusterSettings
from tasks.interrupts import deaf_to_interrupts, put_off
from tasks.nannies import NANNIES_STAY, Successors

LOOPBACK = "127.0.0.1"
"""The scheduler runs any code that it is sent: clusters of this machine listen to this machine alone."""
WAIT_S = 60.0
DRIVER_COUNTS_DEATHS = {"distributed.scheduler.allowed-failures": 0}
"""Dask blames all that a dying worker held; the driver finds out which of it was to blame (:mod:`tasks.flight`)."""


@dataclass(frozen=True)
class Place:
    """Where chunks go."""

    client: Client
    name: str
    cores: int | None
    """Cores of each worker; None: as many as a worker has threads."""
    wait_s: float
    """Seconds to wait for another worker when all are gone."""


@contextmanager
def open_client(settings: ExecutionSettings, cores: int) -> Iterator[Place]:
    """Start or find the cluster, wait for its first worker, and close what was started at the end.

    Args:
        settings: with an executor other than ``inline``.
        cores: processors of this machine that the run may use.

    Raises:
        ExecutionError: no scheduler answers, no worker comes, or the cluster does not start.
        NoDeviceError: no GPU for executor ``gpus``.
        SettingsError: the cluster's class cannot be imported, or is none; or there is no certificate for a ``tls://``
            address.
    """
    with ExitStack() as stack, dask.config.set(DRIVER_COUNTS_DEATHS):
        if settings.executor in ("local", "gpus"):
            stack.enter_context(dask.config.set(NANNIES_STAY))
        wait_s = WAIT_S
        share: int | None
        with put_off():
            if settings.executor == "local":
                workers = settings.workers or cores
                place = stack.enter_context(local_cluster(workers))
                name, share = f"local, {workers} workers", settings.threads or max(1, cores // workers)
            elif settings.executor == "gpus":
                devices = gpu_names()[: settings.workers]
                place = stack.enter_context(gpu_cluster(devices))
                name, share = f"gpus, {len(devices)} workers", settings.threads or max(1, cores // len(devices))
            elif settings.executor == "cluster":
                assert settings.cluster is not None
                place = stack.enter_context(described_cluster(settings.cluster, settings.workers))
                name, share, wait_s = settings.cluster.class_path, settings.threads, settings.cluster.wait_s
            else:
                place, name, share = settings.executor, settings.executor, settings.threads
        client = stack.enter_context(_connected(place))
        _wait_for_worker(client, name, wait_s, settings)
        yield Place(client, name, share, wait_s)


@deaf_to_interrupts()
def local_cluster(workers: int) -> LocalCluster:
    """Return worker processes on this machine, each started again by its nanny when it dies."""
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host=LOOPBACK,
        dashboard_address=f"{LOOPBACK}:0",
        silence_logs=50,
    )
    cluster.adapt(Successors, minimum=workers, maximum=workers)
    return cluster


def gpu_names() -> list[str]:
    """Return how ``CUDA_VISIBLE_DEVICES`` names each GPU that this process may use.

    Raises:
        NoDeviceError: there is none.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise NoDeviceError(
            "executor gpus needs a CUDA device, and torch finds none here; check the driver and CUDA_VISIBLE_DEVICES, "
            "or use --executor local"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    return names[:count]


@deaf_to_interrupts()
def gpu_cluster(devices: list[str]) -> SpecCluster:
    """Return one nanny a GPU, whose worker sees this GPU alone and has one thread.

    A worker holds one copy of the models. The resource ``GPU`` lets other users of the scheduler ask for it.
    """
    security = Security()
    # As LocalCluster chooses for itself.
    protocol = "tls://" if security.require_encryption else "tcp://"
    workers = {
        position: {
            "cls": Nanny,
            "options": {
                "nthreads": 1,
                "resources": {"GPU": 1},
                "env": {"CUDA_VISIBLE_DEVICES": device},
                "host": LOOPBACK,
                "protocol": protocol,
                "security": security,
                "silence_logs": 50,
            },
        }
        for position, device in enumerate(devices)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": LOOPBACK,
            "protocol": protocol,
            "security": security,
            "dashboard_address": f"{LOOPBACK}:0",
        },
    }
    cluster = SpecCluster(workers=workers, scheduler=scheduler, security=security, silence_logs=50, name="rfss-gpus")
    cluster.adapt(Successors, minimum=len(devices), maximum=len(devices))
    return cluster


def described_cluster(settings: ClusterSettings, workers: int | None) -> Cluster:
    """Start the cluster that the settings describe, and scale it.

    Raises:
        SettingsError: no such class, or one that is no Dask cluster.
        ExecutionError: it does not start.
    """
    kind = cluster_class(settings.class_path)
    try:
        cluster = kind(**settings.arguments)
    except RfssError:
        raise
    except Exception as error:
        raise ExecutionError(
            f"cluster {settings.class_path} does not start: {error}; check execution.cluster.arguments"
        ) from error
    if settings.maximum is not None:
        cluster.adapt(minimum=settings.minimum, maximum=settings.maximum)
    elif workers is not None:
        cluster.scale(workers)
    return cluster


def cluster_class(path: str) -> type[Cluster]:
    """Return the class of an import path such as ``dask_jobqueue.SLURMCluster``.

    Raises:
        SettingsError: no such class, or one that is no Dask cluster.
    """
    module, _, name = path.rpartition(".")
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"cluster class '{path}' cannot be imported: {error}; install its package (pip install 'rfss[slurm]' or "
            "'rfss[kubernetes]') or correct execution.cluster.class"
        ) from error
    finally:
        # dask_jobqueue makes Ctrl-C a silent exit with code 0 as soon as it is imported.
        if signal.getsignal(signal.SIGINT) is not interrupted:
            signal.signal(signal.SIGINT, interrupted)
    if not (isinstance(found, type) and issubclass(found, Cluster)):
        raise SettingsError(f"'{path}' is no Dask cluster; execution.cluster.class names a distributed.deploy.Cluster")
    return found


@contextmanager
def _connected(place: Any) -> Iterator[Client]:
    encrypted = isinstance(place, str) and place.startswith("tls://")
    if encrypted and not Security().get_connection_args("client").get("ssl_context"):
        raise SettingsError(
            f"the Dask scheduler at '{place}' asks for a certificate, and none is configured; `rfss secure DIR` makes "
            "one, `set -a; . DIR/client.env; set +a` names it to Dask"
        )
    try:
        client = Client(place, timeout="15s")
    except (OSError, TimeoutError) as error:
        why = "start one (`dask scheduler`) or use --executor local"
        if encrypted:
            why = "start one (`dask scheduler --protocol tls`), or use a certificate of its own authority"
        raise ExecutionError(f"no Dask scheduler answers at '{place}'; {why}") from error
    with client:
        yield client


def _wait_for_worker(client: Client, name: str, wait_s: float, settings: ExecutionSettings) -> None:
    adaptive = settings.cluster is not None and settings.cluster.maximum is not None
    if settings.executor == "cluster" and adaptive:
        # It grows when it has work.
        return
    try:
        client.wait_for_workers(1, timeout=wait_s)
    except TimeoutError as error:
        hint = (
            "set execution.workers, or execution.cluster.maximum to scale with the work, and check its queue"
            if settings.executor == "cluster"
            else f"start one (`dask worker {name}`)"
        )
        raise ExecutionError(f"the Dask scheduler at '{name}' has no worker after {wait_s:.0f} s; {hint}") from error

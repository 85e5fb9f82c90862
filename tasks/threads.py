"""Threads of the numeric libraries: what each kind of work may use, set in each thread that works."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_set = threading.local()


@dataclass(frozen=True)
class Threads:
    """Threads of one worker process."""

    torch: int = 1
    faiss: int = 1
    zarr: int = 1
    """Pieces of one array that are decoded or fetched side by side."""


def threads_for(stage: str, cores: int) -> Threads:
    """Return how a stage shares out the cores of one worker.

    Two libraries never compute at once in a process (:mod:`tasks.phases`), so each may have all cores; while a stage's
    models compute, the next chunk is read with one core's worth of decoding beside them.

    Args:
        stage: name of the stage.
        cores: cores that belong to the worker.
    """
    if stage in ("embed", "patches"):
        return Threads(torch=cores, zarr=2)
    if stage == "segment":
        return Threads(torch=cores, faiss=cores, zarr=2)
    if stage == "index":
        return Threads(faiss=cores, zarr=max(2, cores))
    # Ingest, publish: no models, the store alone.
    return Threads(zarr=max(2, cores))


def configure_threads(threads: Threads) -> None:
    """Let the libraries use so many threads when this thread calls them.

    A Dask nanny sets ``OMP_NUM_THREADS=1``, and a process without it takes every core; both are wrong when several
    workers share a machine, so each worker is told. OpenMP keeps the number a calling thread, not a process.
    """
    if getattr(_set, "threads", None) == threads:
        return
    import faiss
    import torch
    import zarr

    torch.set_num_threads(threads.torch)
    faiss.omp_set_num_threads(threads.faiss)
    zarr.config.set({"async.concurrency": max(2, threads.zarr), "threading.max_workers": threads.zarr})
    _set.threads = threads

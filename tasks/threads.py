"""Threads of the numeric libraries: what each kind of work may use, set in each thread that works."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_set = threading.local()


@dataclass(frozen=True)
class Threads:
    """Threads of one worker process."""

    compute: int = 1
    """Of torch and FAISS, which share one OpenMP and never compute at once (:mod:`tasks.phases`)."""
    zarr: int = 1
    """Pieces of one array that are decoded or fetched side by side."""


def threads_for(stage: str, cores: int) -> Threads:
    """Return how a stage shares out the cores of one worker.

    While a stage's models compute with all of them, the next chunk is read beside them by few threads; a stage without
    models gives all to the store.

    Args:
        stage: name of the stage.
        cores: cores that belong to the worker.
    """
    if stage in ("embed", "patches", "index", "segment", "assess"):
        return Threads(compute=cores, zarr=2)
    return Threads(compute=1, zarr=max(2, cores))


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

    torch.set_num_threads(threads.compute)
    faiss.omp_set_num_threads(threads.compute)
    zarr.config.set({"async.concurrency": max(2, threads.zarr), "threading.max_workers": threads.zarr})
    _set.threads = threads

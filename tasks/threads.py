"""Threads of the numeric libraries, set once a process and changed only when asked for another number."""

from __future__ import annotations

_configured: int | None = None


def configure_threads(threads: int) -> None:
    """Let torch and FAISS use ``threads`` threads in this process.

    A Dask nanny sets ``OMP_NUM_THREADS=1``, and a process without it takes every core; both are wrong when several
    workers share a machine, so each worker is told.
    """
    global _configured  # noqa: PLW0603 - the libraries' own setting is process-wide too
    if _configured == threads:
        return
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    _configured = threads

"""FAISS's GPU cloners, where ``faiss-gpu`` is installed and sees a GPU.

Written against FAISS 1.15's documentation and never run on a GPU by the project (docs/retrieval.md).
"""

from __future__ import annotations

from typing import Any

MOST_NEIGHBOURS = 2048
"""FAISS's GPU selection returns no more than this: neighbours, and lists to search."""


def gpu_count() -> int:
    """Return how many GPUs this process's FAISS can use; 0 with ``faiss-cpu``."""
    import faiss

    return int(faiss.get_num_gpus())


def on_gpus(index: Any) -> Any:
    """Return a copy of a FAISS index on one GPU, or spread over all of them where there are several.

    Vectors are stored as they are (no float16), so distances equal the CPU's up to rounding, but for product
    quantisers, whose tables of a query fit into a GPU's shared memory only as float16.
    """
    import faiss

    library: Any = faiss
    single = gpu_count() == 1
    options = library.GpuClonerOptions() if single else library.GpuMultipleClonerOptions()
    options.useFloat16LookupTables = isinstance(index, faiss.IndexIVFPQ)
    if single:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)

"""FAISS's inverted-list indexes: training one, filling a shard, and opening what was stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import CorruptIndexError, SupportError
from rfss_core.retrieval.coarse import CoarseQuantizer
from rfss_core.retrieval.generations import Generation, Generations, Shard, Trained
from rfss_core.retrieval.gpus import gpu_count, on_gpus
from rfss_core.retrieval.index import Vectors
from rfss_core.retrieval.index_plan import PQ_BITS, IndexPlan
from rfss_core.retrieval.joined_lists import open_joined
from rfss_core.retrieval.stored_vectors import BLOCK, checked_units
from rfss_core.settings.index import IndexSettings

FAR_PERCENTILE = 99.0
_ITERATIONS = 10
"""Of k-means: FAISS's default for inverted lists."""
_COMPONENTS = 4
"""Components that one byte of a product quantiser stands for, at least."""
_LISTS_CHECKED = 256


@dataclass
class OpenLists:
    """The shards' FAISS indexes, which own the memory that ``pointers`` points into."""

    shards: list[Any]
    pointers: Any
    lists: Any
    """All of them as one: FAISS ``HStackInvertedLists``, or the on-disk lists of :class:`Joined`."""


def train(
    sample: npt.NDArray[Any],
    held: npt.NDArray[Any],
    plan: IndexPlan,
    settings: IndexSettings,
    generations: Generations,
) -> Trained:
    """Train an empty index by k-means on a sample and store it.

    Args:
        sample: float16 or float32 [n, D], a random sample of the vectors in random order.
        held: [m, D], vectors of groups that are not in the sample: their distances to the lists say what is far.
        plan: kind and lists.
        settings: seed and ``gpu``.
        generations: where to store it.

    Raises:
        SupportError: a vector is zero or not finite.
    """
    import faiss

    units = checked_units(sample, range(len(sample)))
    index = _empty(int(units.shape[1]), plan)
    index.cp.niter = _ITERATIONS
    index.cp.seed = settings.seed
    index.cp.max_points_per_centroid = 256
    if settings.gpu and gpu_count():
        index.clustering_index = on_gpus(faiss.IndexFlatL2(index.d))
    index.train(units)
    index.clustering_index = None
    near = _assign(index, checked_units(held, range(len(held))), settings)[1]
    with generations.files.scratch() as path:
        faiss.write_index(index, str(path))
        stored = generations.put(path, ".index")
    return Trained(
        file=stored,
        kind=plan.kind,
        nlist=plan.nlist,
        dim=int(units.shape[1]),
        rows=len(units),
        far=float(np.percentile(near, FAR_PERCENTILE)),
    )


def build_shard(
    vectors: npt.NDArray[Any], first: int, trained: Trained, generations: Generations, settings: IndexSettings
) -> Shard:
    """Fill a shard with consecutive rows and store it; runs in a worker.

    The shard's file holds its lists without the centroids, which all shards share.

    Args:
        vectors: float16 or float32 [n, D], as given: their own form is kept beside the lists.
        first: row of the first of them.
        trained: the empty index.
        generations: where it is stored, and the shard will be.
        settings: ``gpu`` and ``check``.

    Raises:
        SupportError: a vector is zero or not finite, or of another dimension.
        CorruptIndexError: the trained index is damaged.
    """
    import faiss

    if vectors.ndim != 2 or vectors.shape[1] != trained.dim or len(vectors) == 0:
        raise SupportError(f"vectors of shape {vectors.shape} do not fit an index of {trained.dim} components")
    index = read_trained(trained, generations, settings.check == "full")
    far = 0
    for start in range(0, len(vectors), BLOCK):
        rows = np.arange(first + start, min(first + start + BLOCK, first + len(vectors)), dtype=np.int64)
        units = checked_units(vectors[start : start + BLOCK], rows)
        lists, near = _assign(index, units, settings)
        far += int(np.count_nonzero(near > trained.far))
        pointer = faiss.swig_ptr
        index.add_core(len(units), pointer(units), pointer(rows), pointer(lists))
    centroids, none = index.quantizer, faiss.IndexFlatL2(trained.dim)
    index.quantizer = none
    with generations.files.scratch() as path:
        faiss.write_index(index, str(path))
        stored_lists = generations.put(path, ".index")
    index.quantizer = centroids
    with generations.files.scratch() as path:
        with path.open("wb") as stream:
            np.save(stream, np.ascontiguousarray(vectors), allow_pickle=False)
        stored_vectors = generations.put(path, ".npy")
    return Shard(
        first=first, rows=len(vectors), lists=stored_lists, vectors=stored_vectors, far_share=far / len(vectors)
    )


def read_trained(trained: Trained, generations: Generations, full: bool) -> Any:
    """Return a fresh FAISS index, trained and empty.

    Raises:
        CorruptIndexError: the file is not what the manifest says.
    """
    path = generations.path(trained.file, full)
    index = _read(path, 0)
    if (index.d, index.nlist, index.ntotal, index.quantizer.ntotal) != (trained.dim, trained.nlist, 0, trained.nlist):
        raise CorruptIndexError(f"trained index '{path}' has other dimensions or lists than its manifest says")
    return index


def open_lists(generation: Generation, generations: Generations, full: bool, code_size: int) -> OpenLists:
    """Map the lists of all shards into memory, joined where the generation has them joined.

    Raises:
        CorruptIndexError: rows are missing or doubled between the shards, or a shard is not what the manifest says.
    """
    if generation.joined is not None:
        for shard in generation.shards:
            # Not searched, but what the next generation is made of; a remote one is not worth fetching for that.
            if generations.files.is_local:
                generations.path(shard.lists, full)
            else:
                generations.check_size(shard.lists)
        return OpenLists([], None, open_joined(generation.joined, generation, generations, full, code_size))
    import faiss

    shards, expected = [], 0
    library: Any = faiss
    pointers = library.InvertedListsPtrVector()
    for shard in generation.shards:
        if shard.first != expected:
            raise CorruptIndexError(
                f"the shards of generation '{generation.id}' hold no rows {expected} to {shard.first}; build it again"
            )
        expected += shard.rows
        path = generations.path(shard.lists, full)
        index = read_shard(shard, generation.trained, path)
        shards.append(index)
        pointers.push_back(index.invlists)
    return OpenLists(shards, pointers, library.HStackInvertedLists(len(shards), pointers.data()))


def read_shard(shard: Shard, trained: Trained, path: Path) -> Any:
    """Return a FAISS index over one shard's lists, which stay on disk.

    Raises:
        CorruptIndexError: the file holds other vectors than the manifest says.
    """
    import faiss

    index = _read(path, faiss.IO_FLAG_MMAP_IFC)
    _check_shard(index, shard, trained, path)
    return index


def centroids_of(index: Any) -> npt.NDArray[np.float32]:
    """Return the centroids of an inverted-list index, float32 [nlist, D]."""
    return np.asarray(index.quantizer.reconstruct_n(0, index.nlist), dtype=np.float32)


def _empty(dim: int, plan: IndexPlan) -> Any:
    import faiss

    centroids = faiss.IndexFlatL2(dim)
    index: Any
    if plan.kind == "ivf-flat":
        index = faiss.IndexIVFFlat(centroids, dim, plan.nlist)
    elif plan.kind == "ivf-sq8":
        index = faiss.IndexIVFScalarQuantizer(centroids, dim, plan.nlist, faiss.ScalarQuantizer.QT_8bit)
    else:
        bytes_a_vector = next(m for m in range(max(1, dim // _COMPONENTS), 0, -1) if dim % m == 0)
        index = faiss.IndexIVFPQ(centroids, dim, plan.nlist, bytes_a_vector, PQ_BITS)
    # The centroids belong to Python: FAISS would free them a second time.
    index.own_fields = False
    return index


def _assign(
    index: Any, units: Vectors, settings: IndexSettings
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    search = on_gpus(index.quantizer) if settings.gpu and gpu_count() else index.quantizer
    lists, near = CoarseQuantizer(centroids_of(index), search).nearest(units, 1)
    return np.ascontiguousarray(lists[:, 0]), near[:, 0]


def _check_shard(index: Any, shard: Shard, trained: Trained, path: Path) -> None:
    if (index.d, index.nlist, index.ntotal) != (trained.dim, trained.nlist, shard.rows):
        raise CorruptIndexError(
            f"shard '{path}' holds {index.ntotal} vectors of {index.d} components in {index.nlist} lists; its manifest "
            f"says {shard.rows}, {trained.dim}, {trained.nlist}: it belongs to another generation"
        )
    import faiss

    # Rows rise within a list, so its ends tell. A sample of the lists is enough to tell shards apart.
    for number in range(0, index.nlist, max(1, index.nlist // _LISTS_CHECKED)):
        size = index.invlists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
            if ids[0] < shard.first or ids[-1] >= shard.first + shard.rows:
                raise CorruptIndexError(
                    f"shard '{path}' holds row {ids[0]}, but its manifest says rows {shard.first} to "
                    f"{shard.first + shard.rows - 1}: it was swapped with another"
                )


def _read(path: Path, flags: int) -> Any:
    import faiss

    try:
        return faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:
        raise CorruptIndexError(
            f"index file '{path}' cannot be read ({str(error).splitlines()[0]}); restore it, or build the index again"
        ) from error

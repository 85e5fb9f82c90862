"""The lists of all shards in one file: what a search reads once they are joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import CorruptIndexError
from rfss_core.retrieval.generations import Generation, Generations, Joined

_ROW_BYTES = 8


def join(shards: Sequence[Any], generations: Generations) -> Joined:
    """Write the lists of all shards into one file, list by list, and store it.

    FAISS copies a list out of a stack of shards whenever it is searched; in one file it reads the list in place. The
    layout is what ``faiss.OnDiskInvertedLists`` expects. FAISS's own ``merge_from_multiple`` makes the same file and
    prints while it does.

    Args:
        shards: FAISS indexes of the shards, by rising row.
        generations: where to store it.

    Returns:
        The stored files.
    """
    nlist = shards[0].nlist
    lists = [shard.invlists for shard in shards]
    sizes = np.array([[each.list_size(number) for number in range(nlist)] for each in lists], dtype=np.int64)
    with generations.files.scratch() as path:
        with path.open("wb") as stream:
            for number in range(nlist):
                held = [(each, int(sizes[shard, number])) for shard, each in enumerate(lists) if sizes[shard, number]]
                for each, size in held:
                    stream.write(_view(each.get_codes(number), size * each.code_size))
                for each, size in held:
                    stream.write(_view(each.get_ids(number), size))
        stored = generations.put(path, ".ivfdata")
    with generations.files.scratch() as path:
        with path.open("wb") as stream:
            np.save(stream, sizes.sum(axis=0), allow_pickle=False)
        stored_sizes = generations.put(path, ".npy")
    return Joined(lists=stored, sizes=stored_sizes)


def open_joined(joined: Joined, generation: Generation, generations: Generations, full: bool, code_size: int) -> Any:
    """Map joined lists into memory.

    Args:
        joined: the files.
        generation: whose lists they are.
        generations: where they are stored.
        full: whether to compare their sha256.
        code_size: bytes of a vector in a list.

    Returns:
        ``faiss.OnDiskInvertedLists``, read-only.

    Raises:
        CorruptIndexError: the files are damaged, or do not hold the generation's vectors.
    """
    import faiss

    library: Any = faiss
    path = generations.path(joined.lists, full)
    trained = generation.trained
    sizes = _sizes(generations, joined, full)
    wrong = sizes.shape != (trained.nlist,) or sizes.dtype != np.int64 or int(sizes.sum()) != generation.rows
    if wrong or joined.lists.size != generation.rows * (code_size + _ROW_BYTES):
        raise CorruptIndexError(
            f"joined lists '{path}' do not hold the {generation.rows} vectors of generation '{generation.id}' in "
            f"{trained.nlist} lists: they belong to another generation; build the index again"
        )
    lists = library.OnDiskInvertedLists()
    lists.nlist, lists.code_size = trained.nlist, code_size
    lists.filename, lists.totsize, lists.read_only = str(path), joined.lists.size, True
    lists.lists.resize(trained.nlist)
    unsigned = sizes.astype(np.uint64)
    lists.set_all_lists_sizes(faiss.swig_ptr(unsigned))
    # FAISS would read every list that a batch touches a second time, on 32 threads, to warm the page cache.
    lists.prefetch_nthread = 0
    lists.do_mmap()
    return lists


def _view(pointer: Any, size: int) -> memoryview:
    """Return so many items of FAISS's memory."""
    import faiss

    items: Any = faiss.rev_swig_ptr(pointer, size)
    return memoryview(items)


def _sizes(generations: Generations, joined: Joined, full: bool) -> npt.NDArray[np.int64]:
    path = generations.path(joined.sizes, full)
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise CorruptIndexError(f"sizes of joined lists '{path}' cannot be read: {error}; build again") from error

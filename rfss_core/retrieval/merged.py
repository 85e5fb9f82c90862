"""One on-disk FAISS index from all shards, for programs that know FAISS and not RFSS."""

from __future__ import annotations

import logging
from pathlib import Path

from rfss_core.errors import InputError
from rfss_core.retrieval.generations import Generation, Generations
from rfss_core.retrieval.inverted_lists import read_trained

INDEX = "merged.index"
LISTS = "merged.ivfdata"


def merge_on_disk(generations: Generations, generation: Generation, folder: Path) -> Path:
    """Write ``merged.index`` and ``merged.ivfdata`` with the rows of all shards (``faiss.contrib.ondisk``).

    The index names its lists by the path they were written to: open it with
    ``faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR)``, which looks beside it instead, so that the folder may be
    moved. It takes no additions.

    Args:
        generations: where the shards are.
        generation: which of them.
        folder: where to write; it must not hold a merged index yet.

    Returns:
        Path of ``merged.index``, written last.

    Raises:
        InputError: the folder holds a merged index.
        CorruptIndexError: a shard is damaged.
    """
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    logging.getLogger("faiss.contrib.ondisk").setLevel(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / INDEX
    if target.exists():
        raise InputError(f"'{folder}' holds a merged index already; remove it, or name another folder")
    index = read_trained(generation.trained, generations, full=True)
    shards = [str(generations.path(shard.lists)) for shard in generation.shards]
    merge_ondisk(index, shards, str(folder / LISTS))
    index.nprobe = generation.tuning.levels[0].nprobe
    partial = folder / f"{INDEX}.partial"
    faiss.write_index(index, str(partial))
    partial.replace(target)
    return target

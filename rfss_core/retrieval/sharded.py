"""Search over a generation's shards as if they were one index."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import RecallWarning
from rfss_core.retrieval.coarse import CoarseQuantizer
from rfss_core.retrieval.generations import Generation, Generations, Probing
from rfss_core.retrieval.gpus import MOST_NEIGHBOURS, gpu_count, on_gpus
from rfss_core.retrieval.index import ROUNDING, Vectors, check_search
from rfss_core.retrieval.inverted_lists import centroids_of, open_lists, read_trained
from rfss_core.retrieval.measuring import nearest_candidates
from rfss_core.retrieval.stored_vectors import StoredVectors, nearest_among
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.settings.index import IndexSettings

_AT_ONCE = 256
"""Queries that one thread looks for together."""
_ASSIGNED = 4096
"""Queries whose lists are chosen together."""
_OVER_QUERIES = 3
"""FAISS's ``parallel_mode`` in which threads share the queries of a search whose lists are given; else one works."""


@dataclass(frozen=True)
class _Part:
    """Queries that are looked for together."""

    members: npt.NDArray[np.int64]
    """Their numbers among all that were asked."""
    queries: Vectors
    lists: int
    """Lists to search for each."""
    width: int
    """Candidates wanted of each."""
    near: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None
    """The lists and their distances, [n, lists]; None: FAISS's GPU index chooses them."""


_Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""FAISS's distances and rows."""


class ShardedIndex:
    """A :class:`VectorIndex` over memory-mapped inverted lists in any number of files.

    The lists of all shards are joined in one file, or stacked (FAISS ``HStackInvertedLists``) where they are not, so
    that one search sees them all, and the number of shards changes nothing. Candidates are measured again in float64 on
    the vectors as they were given and ordered by distance and row, so a result depends on the query and the generation
    alone. Two filters are treated apart: one that leaves few rows is searched exactly, one that leaves a share of them
    with the more lists that the tuning found necessary.

    Args:
        generations: where the index is stored.
        generation: what to open. Default: the current generation.
        settings: ``check``, ``exact_rows`` and ``gpu`` are read.
        threads: FAISS's threads; None leaves them as they are.

    Raises:
        IndexNotFoundError: nothing is published, or a file is missing.
        CorruptIndexError: a file is truncated, swapped, or of another generation.
    """

    def __init__(
        self,
        generations: Generations,
        generation: Generation | None = None,
        settings: IndexSettings | None = None,
        threads: int | None = None,
    ) -> None:
        import faiss

        self.generation = generation or generations.read()
        self._settings = settings or IndexSettings()
        self._faiss: Any = faiss
        self._threads = threads
        full = self._settings.check == "full"
        self._index = read_trained(self.generation.trained, generations, full)
        shards = self.generation.shards
        self._lists = open_lists(self.generation, generations, full, self._index.code_size)
        self._index.replace_invlists(self._lists.lists, False)
        self._index.ntotal = self.generation.rows
        self._index.parallel_mode = _OVER_QUERIES
        self._coarse = CoarseQuantizer(centroids_of(self._index), self._index.quantizer)
        paths = [generations.path(shard.vectors, full) for shard in shards]
        self.vectors = StoredVectors(paths, [shard.rows for shard in shards], self.dim)
        self.tuning = self.generation.tuning
        self.held = np.load(generations.path(self.generation.held, full), allow_pickle=False)
        self._exact_lists = self.generation.trained.kind == "ivf-flat"
        self._on_gpus = on_gpus(self._index) if self._settings.gpu and gpu_count() else None
        self._warned = False

    @property
    def size(self) -> int:
        """Vectors in the index."""
        return self.generation.rows

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.generation.trained.dim

    def search(
        self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the k nearest allowed vectors of each query; see :meth:`VectorIndex.search`.

        Fewer than k are returned only where fewer are allowed: a query whose lists hold too few looks into more.

        Raises:
            SupportError: queries of another dimension or not of unit length, or no row is allowed.
        """
        rows = check_search(queries, self.size, self.dim, allowed)
        k = min(k, rows)
        if k > self.tuning.k and not self._warned:
            self._warned = True
            warnings.warn(
                RecallWarning(f"recall was tuned at k = {self.tuning.k}, {k} neighbours are asked for: tune at that k"),
                stacklevel=2,
            )
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        probing = self.probing(rows)
        if probing is None:
            found, distances = nearest_among(self.vectors, queries, k, allowed, self._threads)
            return found, distances.astype(np.float32)
        return self.probe(queries, k, allowed if rows < self.size else None, probing.nprobe)

    def vectors_of(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`VectorIndex.vectors_of`."""
        return unit_vectors(self.vectors.take(rows))[0]

    def probing(self, rows: int) -> Probing | None:
        """Return how a search over ``rows`` allowed rows proceeds; None: exactly."""
        if rows <= self._settings.exact_rows:
            return None
        fitting = [level for level in self.tuning.levels if level.share * self.size <= rows]
        return fitting[0] if fitting else None

    def probe(
        self,
        queries: Vectors,
        k: int,
        allowed: npt.NDArray[np.bool_] | None,
        nprobe: int,
        factor: float | None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Search so many inverted lists: what :meth:`search` does, with its choices made by the caller (tuning).

        Args:
            queries: L2-normalised float32 [n, D].
            k: neighbours, at most the number of allowed rows.
            allowed: bool [N] or None.
            nprobe: lists.
            factor: candidates in multiples of k. Default: the tuning's.

        Returns:
            As :meth:`VectorIndex.search`.
        """
        if self._threads is not None:
            self._faiss.omp_set_num_threads(self._threads)
        selector = None
        if allowed is not None:
            selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        wanted = math.ceil(k * (factor or self.tuning.factor))
        indices = np.empty((len(queries), k), dtype=np.int64)
        distances = np.empty((len(queries), k), dtype=np.float32)
        nlist = self._coarse.nlist

        def settle(part: _Part) -> list[_Part]:
            """Answer the queries of a part that can be; return parts for the others."""
            rough, found = self._candidates(part, selector)
            # One more candidate than wanted shows whether the last one is tied with the next.
            full = found[:, -1] >= 0
            tied = full & (rough[:, -1] <= rough[:, wanted - 1] + ROUNDING)
            short = (np.count_nonzero(found >= 0, axis=1) < k) & (part.lists < nlist)
            settled = ~tied & ~short
            done = part.members[settled]
            if done.size:
                indices[done], distances[done] = nearest_candidates(
                    self.vectors,
                    part.queries[settled],
                    found[settled],
                    # What the lists hold is what was given, up to rounding, unless they quantise.
                    rough[settled] if self._exact_lists else None,
                    k,
                )
            again = self._parts(queries, part.members[tied], part.lists, 2 * part.width, selector)
            return again + self._parts(queries, part.members[short], min(2 * part.lists, nlist), part.width, selector)

        parts = self._parts(queries, np.arange(len(queries)), min(nprobe, nlist), wanted + 1, selector)
        while parts:
            parts = [more for left in self._each(settle, parts) for more in left]
        return indices, distances

    def _parts(
        self, queries: Vectors, members: npt.NDArray[np.int64], lists: int, width: int, selector: Any
    ) -> list[_Part]:
        """Cut queries into what is looked for together, with their nearest lists."""
        parts: list[_Part] = []
        for first in range(0, len(members), _ASSIGNED):
            block = members[first : first + _ASSIGNED]
            asked = queries[block]
            if self._searched_on_gpus(lists, width, selector):
                parts.append(_Part(block, asked, lists, width, None))
                continue
            # All at once: FAISS multiplies matrices only from some hundred queries on.
            near, far = self._coarse.nearest(asked, lists)
            for at in range(0, len(block), _AT_ONCE):
                some = slice(at, at + _AT_ONCE)
                parts.append(_Part(block[some], asked[some], lists, width, (near[some], far[some])))
        return parts

    def _each(self, settle: Callable[[_Part], list[_Part]], parts: list[_Part]) -> list[list[_Part]]:
        """Settle parts side by side, each in one thread: while one measures in Python, another's lists are read."""
        threads = min(self._faiss.omp_get_max_threads(), len(parts))
        # FAISS's GPU indexes share their scratch memory: one search at a time.
        if threads == 1 or any(part.near is None for part in parts):
            return [settle(part) for part in parts]
        with ThreadPoolExecutor(threads, initializer=self._faiss.omp_set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(settle, parts))

    def _searched_on_gpus(self, lists: int, width: int, selector: Any) -> bool:
        return self._on_gpus is not None and selector is None and max(lists, width) <= MOST_NEIGHBOURS

    def _candidates(self, part: _Part, selector: Any) -> _Found:
        """Return FAISS's distances [n, width], rising, and rows [n, width]; -1 where the lists hold no more."""
        params = self._faiss.SearchParametersIVF(nprobe=part.lists, sel=selector)
        if part.near is None and self._on_gpus is not None:
            rough, found = self._on_gpus.search(part.queries, part.width, params=params)
            return rough, found
        lists, near = (
            np.ascontiguousarray(each) for each in part.near or self._coarse.nearest(part.queries, part.lists)
        )
        rough = np.empty((len(part.queries), part.width), dtype=np.float32)
        found = np.empty((len(part.queries), part.width), dtype=np.int64)
        pointer = self._faiss.swig_ptr
        # FAISS's own Python wrapper of this call takes no selector.
        self._index.search_preassigned_c(
            len(part.queries),
            pointer(part.queries),
            part.width,
            pointer(lists),
            pointer(near),
            pointer(rough),
            pointer(found),
            False,
            params,
        )
        return rough, found

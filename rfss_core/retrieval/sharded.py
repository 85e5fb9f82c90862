"""Search over a generation's shards as if they were one index."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
"""Queries whose candidates are measured while FAISS searches for the next ones'."""

_Part = tuple[npt.NDArray[np.int64], int, int]
"""Queries, lists to search, candidates wanted of each."""
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
        factor: int | None = None,
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
        wanted = k * (factor or self.tuning.factor)
        indices = np.empty((len(queries), k), dtype=np.int64)
        distances = np.empty((len(queries), k), dtype=np.float32)
        lists = min(nprobe, self._coarse.nlist)
        pending = deque(
            (np.arange(first, min(first + _AT_ONCE, len(queries))), lists, wanted + 1)
            for first in range(0, len(queries), _AT_ONCE)
        )

        def look(part: _Part) -> _Found:
            return self._candidates(queries[part[0]], part[1], part[2], selector)

        for (members, lists, width), (rough, found) in self._ahead(pending, look):
            # One more candidate than wanted shows whether the last one is tied with the next.
            full = found[:, -1] >= 0
            tied = full & (rough[:, -1] <= rough[:, wanted - 1] + ROUNDING)
            short = (np.count_nonzero(found >= 0, axis=1) < k) & (lists < self._coarse.nlist)
            if tied.any():
                pending.append((members[tied], lists, 2 * width))
            if short.any():
                pending.append((members[short], min(2 * lists, self._coarse.nlist), width))
            settled = ~tied & ~short
            done = members[settled]
            if done.size:
                indices[done], distances[done] = nearest_candidates(
                    self.vectors,
                    queries[done],
                    found[settled],
                    # What the lists hold is what was given, up to rounding, unless they quantise.
                    rough[settled] if self._exact_lists else None,
                    k,
                )
        return indices, distances

    def _ahead(self, pending: deque[_Part], look: Callable[[_Part], _Found]) -> Iterator[tuple[_Part, _Found]]:
        """Yield parts with what was found, while FAISS looks for the next one's; the caller may add parts."""
        if len(pending) == 1:
            while pending:
                part = pending.popleft()
                yield part, look(part)
            return
        # A thread begins with FAISS's own number of threads, not with the caller's.
        threads = self._faiss.omp_get_max_threads()
        with ThreadPoolExecutor(1, initializer=self._faiss.omp_set_num_threads, initargs=(threads,)) as pool:
            coming: tuple[_Part, Future[_Found]] | None = None
            while pending or coming is not None:
                looked = coming
                coming = None
                if pending:
                    part = pending.popleft()
                    coming = (part, pool.submit(look, part))
                if looked is not None:
                    yield looked[0], looked[1].result()

    def _candidates(self, queries: Vectors, nprobe: int, width: int, selector: Any) -> _Found:
        """Return FAISS's distances [n, width], rising, and rows [n, width]; -1 where the lists hold no more."""
        params = self._faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        if self._on_gpus is not None and selector is None and width <= MOST_NEIGHBOURS:
            rough, found = self._on_gpus.search(queries, width, params=params)
            return rough, found
        lists, near = self._coarse.nearest(queries, nprobe)
        rough = np.empty((len(queries), width), dtype=np.float32)
        found = np.empty((len(queries), width), dtype=np.int64)
        pointer = self._faiss.swig_ptr
        # FAISS's own Python wrapper of this call takes no selector.
        self._index.search_preassigned_c(
            len(queries),
            pointer(queries),
            width,
            pointer(lists),
            pointer(near),
            pointer(rough),
            pointer(found),
            False,
            params,
        )
        return rough, found

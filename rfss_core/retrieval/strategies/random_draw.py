"""Strategy ``random``: seeded draws, for comparison."""

from __future__ import annotations

import hashlib

import numpy as np

from rfss_core.retrieval.index import VectorIndex, squared_distances
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.strategies.strategy import QueryGroup


class RandomStrategy:
    """Support slices drawn without replacement, in order of draw, with their true distances.

    A draw depends on the seed, the query's id and the rows that may serve it alone, not on what else is searched.

    Args:
        index: of the support set's embeddings.
        seed: another seed, another draw.
    """

    def __init__(self, index: VectorIndex, seed: int) -> None:
        self._index = index
        self._seed = seed

    def choose(self, queries: QueryGroup) -> list[Neighbours]:
        """Return k draws; see :meth:`Strategy.choose`."""
        rows = np.flatnonzero(queries.allowed).astype(np.int64)
        found = []
        for name, query in zip(queries.ids, queries.embeddings, strict=True):
            entropy = int.from_bytes(hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:16], "little")
            drawn = np.random.default_rng(entropy).choice(rows, size=min(queries.k, len(rows)), replace=False)
            found.append(Neighbours(drawn, squared_distances(query, self._index.vectors_of(drawn)).astype(np.float32)))
        return found

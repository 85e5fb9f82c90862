"""Strategy ``dino``: the nearest embeddings."""

from __future__ import annotations

from rfss_core.retrieval.index import VectorIndex
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.strategies.strategy import QueryGroup


class NearestStrategy:
    """The nearest embeddings by squared L2 distance, nearest first.

    Zhao et al., "Retrieval-augmented Few-shot Medical Image Segmentation with Foundation Models" (arXiv:2408.08813),
    section III-B.

    Args:
        index: of the support set's embeddings.
    """

    def __init__(self, index: VectorIndex) -> None:
        self._index = index

    def choose(self, queries: QueryGroup) -> list[Neighbours]:
        """Return the k nearest; see :meth:`Strategy.choose`."""
        indices, distances = self._index.search(queries.embeddings, queries.k, queries.allowed)
        return [Neighbours(row, distance) for row, distance in zip(indices, distances, strict=True)]

"""Strategy ``diverse``: maximal marginal relevance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import VectorIndex, Vectors, squared_distances
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.strategies.strategy import QueryGroup


class DiverseStrategy:
    """Slices like the query and unlike each other, so that near copies do not fill the k places.

    Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries" (SIGIR 1998), with lambda = 1 - diversity and cosine similarity in both places, over the nearest
    candidates. Slices come in the order in which they are chosen: the nearest first.

    Args:
        index: of the support set's embeddings.
        candidates: k is chosen among this many times k nearest.
        diversity: 1 - lambda, from 0 (the nearest, as ``dino``) to 1.
    """

    def __init__(self, index: VectorIndex, candidates: int, diversity: float) -> None:
        self._index = index
        self._candidates = candidates
        self._diversity = diversity

    def choose(self, queries: QueryGroup) -> list[Neighbours]:
        """Return k of the candidates; see :meth:`Strategy.choose`."""
        indices, distances = self._index.search(queries.embeddings, self._candidates * queries.k, queries.allowed)
        found = []
        for rows, distance in zip(indices, distances, strict=True):
            order = marginal_relevance(distance, self._index.vectors_of(rows), queries.k, self._diversity)
            found.append(Neighbours(rows[order], distance[order]))
        return found


def marginal_relevance(
    distances: npt.NDArray[np.float32], vectors: Vectors, k: int, diversity: float
) -> npt.NDArray[np.int64]:
    """Choose k candidates by maximal marginal relevance.

    Args:
        distances: squared L2 distances [P] between the query and the candidates, nearest first.
        vectors: the candidates' unit vectors [P, D].
        k: candidates to choose, at most.
        diversity: weight of the similarity to what is chosen already; 1 - it weighs the similarity to the query.

    Returns:
        int64 positions among the candidates, in the order of choice; ties go to the nearer one.
    """
    relevance = 1 - distances.astype(np.float64) / 2
    redundancy = np.full(len(distances), -np.inf)
    left = np.ones(len(distances), dtype=np.bool_)
    chosen: list[int] = []
    for _ in range(min(k, len(distances))):
        marginal = (1 - diversity) * relevance - (diversity * redundancy if chosen else 0)
        # The first candidate is the most relevant whatever the diversity, as in the paper.
        best = int(np.argmax(np.where(left, marginal if chosen else relevance, -np.inf)))
        chosen.append(best)
        left[best] = False
        redundancy = np.maximum(redundancy, 1 - squared_distances(vectors[best], vectors) / 2)
    return np.array(chosen, dtype=np.int64)

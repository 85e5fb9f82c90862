"""Strategy ``per-class``: for every class its own nearest slices, from the whole support set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import VectorIndex, Vectors
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.strategies.strategy import QueryGroup
from rfss_core.retrieval.support import SupportSet

Found = dict[int, np.float32]
"""Squared distances by row."""


class PerClassStrategy:
    """For every class the k slices that serve it: the nearest that hold it, and a share that lack it.

    The slices without the class are negative evidence. Where one kind runs short the other fills up. Unlike
    ``SegmentationSettings.class_supports``, which chooses among the k slices that were retrieved for all classes, this
    looks through all rows for each class, so that a rare class finds its slices wherever they are.

    Args:
        support: labelled slices.
        index: of their embeddings.
        absent_share: share of a class's k slices, from 0 to 1, that should lack it.
    """

    def __init__(self, support: SupportSet, index: VectorIndex, absent_share: float) -> None:
        self._support = support
        self._index = index
        self._absent_share = absent_share

    def choose(self, queries: QueryGroup) -> list[Neighbours]:
        """Return every class's own k nearest, and their union; see :meth:`Strategy.choose`."""
        found: list[dict[int, Found]] = [{} for _ in queries.ids]
        for column, value in enumerate(self._support.class_values):
            holds = self._support.class_presence[:, column]
            present, absent = queries.allowed & holds, queries.allowed & ~holds
            with_class, without = int(present.sum()), int(absent.sum())
            wanted = round(queries.k * self._absent_share)
            negatives = min(without, max(wanted, queries.k - with_class))
            positives = min(with_class, queries.k - negatives)
            for rows, count in ((present, positives), (absent, negatives)):
                for own, hits in zip(found, self._nearest(queries.embeddings, count, rows), strict=True):
                    own.setdefault(value, {}).update(hits)
        return [_neighbours(own) for own in found]

    def _nearest(self, embeddings: Vectors, count: int, allowed: npt.NDArray[np.bool_]) -> list[Found]:
        if count == 0:
            return [{} for _ in embeddings]
        indices, distances = self._index.search(embeddings, count, allowed)
        return [
            dict(zip(row.tolist(), distance, strict=True)) for row, distance in zip(indices, distances, strict=True)
        ]


def _neighbours(by_class: dict[int, Found]) -> Neighbours:
    everything = {row: distance for hits in by_class.values() for row, distance in hits.items()}
    rows = _ordered(everything)
    return Neighbours(
        rows,
        np.array([everything[row] for row in rows.tolist()], dtype=np.float32),
        {value: _ordered(hits) for value, hits in by_class.items()},
    )


def _ordered(hits: Found) -> npt.NDArray[np.int64]:
    return np.array(sorted(hits, key=lambda row: (hits[row], row)), dtype=np.int64)

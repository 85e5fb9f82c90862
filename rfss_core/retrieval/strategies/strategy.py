"""What every strategy promises, and which one the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import VectorIndex, Vectors
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.support import SupportSet
from rfss_core.settings import RetrievalSettings


@dataclass(frozen=True, eq=False)
class QueryGroup:
    """Queries that the same support slices may serve."""

    ids: Sequence[str]
    """Name of each query."""
    embeddings: Vectors
    """L2-normalised float32 [n, D]."""
    allowed: npt.NDArray[np.bool_]
    """bool [N], the rows of the support set that may be returned; at least k."""
    k: int
    """Support slices wanted for a query."""
    patches: Sequence[npt.NDArray[Any]] | None = None
    """L2-normalised patch tokens [h, w, D] of each query, where the strategy needs them."""


class Strategy(Protocol):
    """Chooses support slices. A query's do not depend on the other queries; ties go to the lower row."""

    def choose(self, queries: QueryGroup) -> list[Neighbours]:
        """Choose support slices for each query.

        Args:
            queries: who asks, and what may be returned.

        Returns:
            One entry a query, in the queries' order.
        """
        ...


def load_strategy(settings: RetrievalSettings, support: SupportSet, index: VectorIndex, seed: int) -> Strategy:
    """Return the strategy that the settings name.

    Args:
        settings: strategy and its parameters.
        support: labelled slices.
        index: of their embeddings, row for row.
        seed: of random draws.

    Raises:
        SupportError: strategy ``region`` and a support set without patch tokens.
    """
    from rfss_core.retrieval.strategies.diverse import DiverseStrategy
    from rfss_core.retrieval.strategies.nearest import NearestStrategy
    from rfss_core.retrieval.strategies.per_class import PerClassStrategy
    from rfss_core.retrieval.strategies.random_draw import RandomStrategy
    from rfss_core.retrieval.strategies.region import RegionStrategy

    match settings.strategy:
        case "dino":
            return NearestStrategy(index)
        case "random":
            return RandomStrategy(index, seed)
        case "per-class":
            return PerClassStrategy(support, index, settings.absent_share)
        case "diverse":
            return DiverseStrategy(index, settings.candidates, settings.diversity)
        case "region":
            return RegionStrategy(support, index, settings.candidates, settings.region_weight)

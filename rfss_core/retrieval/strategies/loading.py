"""The strategy that the settings name."""

from __future__ import annotations

from rfss_core.retrieval.index import VectorIndex
from rfss_core.retrieval.strategies.strategy import Strategy
from rfss_core.retrieval.support import SupportSet
from rfss_core.settings import RetrievalSettings


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
    # Each only where it is asked for: one needs torch, which takes seconds to load.
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

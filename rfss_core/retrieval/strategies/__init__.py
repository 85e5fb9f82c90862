"""Strategies: how a query's support slices are chosen among those that may serve it. One a file."""

from rfss_core.retrieval.strategies.loading import load_strategy
from rfss_core.retrieval.strategies.strategy import QueryGroup, Strategy

__all__ = ["QueryGroup", "Strategy", "load_strategy"]

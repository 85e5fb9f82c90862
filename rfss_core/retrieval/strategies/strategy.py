"""What every strategy promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.index import Vectors
from rfss_core.retrieval.neighbours import Neighbours


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

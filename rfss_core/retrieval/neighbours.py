"""What retrieval hands to segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The support slices that serve one query.

    Attributes:
        indices: int64 [k], rows of the support set, in the strategy's own order; ``dino`` puts the nearest first.
        distances: float32 [k], squared L2 distances between L2-normalised embeddings, from 0 to 4.
        by_class: strategy ``per-class``: the rows that serve each class value, all of them among ``indices``. None: all
            serve every class.
    """

    indices: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]
    by_class: Mapping[int, npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fewest(self) -> int:
        """Slices that serve the class with the fewest."""
        return min((len(rows) for rows in self.by_class.values()), default=0) if self.by_class else len(self)

    def for_class(self, value: int) -> npt.NDArray[np.int64]:
        """Return the rows that serve one class: int64."""
        return self.indices if self.by_class is None else self.by_class[value]

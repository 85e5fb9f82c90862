"""What retrieval hands to segmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The support slices that serve one query.

    Attributes:
        indices: int64 [k], rows of the support set; strategy ``dino`` puts the nearest first.
        distances: float32 [k], squared L2 distances between L2-normalised embeddings, from 0 to 4.
    """

    indices: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indices)

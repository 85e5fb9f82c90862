"""Strategy ``region``: candidates ranked again by their patches, above all those under their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import adaptive_avg_pool2d

from rfss_core.errors import SettingsError, SupportError
from rfss_core.retrieval.index import VectorIndex
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.strategies.strategy import QueryGroup
from rfss_core.retrieval.support import SupportSet

Tokens = npt.NDArray[Any]
"""L2-normalised patch tokens [h, w, D], float16 or wider."""
Weights = npt.NDArray[np.float64]
"""Of a slice's patches, [h, w], adding up to 1."""

DECIMALS = 6
"""Of a similarity: what threads and machines move lies far below, and what is equal to here is tied."""


class RegionStrategy:
    """The candidates whose labelled structures look most like something in the query.

    A whole slice's embedding says little about a structure of a few patches. So the nearest slices by embedding are
    ranked again by the sum of two cosine similarities. One is the embeddings'. For the other each patch of a candidate
    finds its most similar patch in the query (late interaction: Khattab and Zaharia, "ColBERT", SIGIR 2020), and the
    mean of these is weighted towards the candidate's mask, every class alike. A candidate without any foreground is
    judged where the others' structures lie. Distances stay those of the embeddings.

    Args:
        support: labelled slices with patch tokens.
        index: of their embeddings.
        candidates: k is chosen among this many times k nearest.
        region_weight: share of the weight that lies on the mask, from 0 (all patches alike) to 1.

    Raises:
        SupportError: the support set has no patch tokens.
    """

    def __init__(self, support: SupportSet, index: VectorIndex, candidates: int, region_weight: float) -> None:
        if not support.has_patches:
            raise SupportError("strategy region compares patch tokens; add them with support.with_patches(...)")
        self._support = support
        self._index = index
        self._candidates = candidates
        self._region_weight = region_weight

    def choose(self, queries: QueryGroup) -> list[Neighbours]:
        """Return k of the candidates, the most similar first; see :meth:`Strategy.choose`.

        Raises:
            SettingsError: the queries came without patch tokens.
        """
        if queries.patches is None:
            raise SettingsError("strategy region compares patch tokens; pass the queries' as patches")
        indices, distances = self._index.search(queries.embeddings, self._candidates * queries.k, queries.allowed)
        found = []
        for tokens, rows, distance in zip(queries.patches, indices, distances, strict=True):
            order = self._rank(tokens, rows, distance)[: queries.k]
            found.append(Neighbours(rows[order], distance[order]))
        return found

    def _rank(
        self, query: Tokens, rows: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        tokens = [self._support.patches(int(row)) for row in rows]
        masks = [self._support.mask(int(row)) for row in rows]
        weights = patch_weights(masks, [one.shape[:2] for one in tokens], self._region_weight)
        patches = [patch_similarity(query, one, weight) for one, weight in zip(tokens, weights, strict=True)]
        # Patches alone do not say where in the body a slice lies: a small model's find a likeness almost anywhere.
        whole = 1 - distances.astype(np.float64) / 2
        # Stable: equal scores keep the order of the embeddings.
        return np.argsort(-np.round(whole + np.array(patches), DECIMALS), kind="stable")


def patch_similarity(query: Tokens, support: Tokens, weights: Weights) -> float:
    """Return the weighted mean, over a support slice's patches, of the best cosine similarity in the query.

    Args:
        query: patch tokens [h, w, D].
        support: patch tokens [h', w', D].
        weights: of the support's patches [h', w'], adding up to 1.

    Returns:
        From -1 to 1, rounded to :data:`DECIMALS`.

    Raises:
        SupportError: tokens of another dimension.
    """
    if query.shape[2] != support.shape[2]:
        raise SupportError(
            f"the query's patch tokens have {query.shape[2]} components, the support set's {support.shape[2]}; "
            "embed both with the same model"
        )
    flat = query.reshape(-1, query.shape[2]).astype(np.float64)
    similarity = flat @ support.reshape(-1, support.shape[2]).astype(np.float64).T
    return round(float(np.sum(similarity.max(axis=0) * weights.ravel())), DECIMALS)


def patch_weights(
    masks: Sequence[npt.NDArray[np.uint8]], grids: Sequence[tuple[int, ...]], region_weight: float
) -> list[Weights]:
    """Weight the patches of slices towards their masks.

    Args:
        masks: label map [H, W] of each slice.
        grids: rows and columns of each slice's patches.
        region_weight: share of the weight that lies on the mask; each class of a slice has the same part of it.

    Returns:
        One array of weights a slice. A slice without foreground has the others' mean in the place of its own mask's.
    """
    regions = [_region(mask, grid) for mask, grid in zip(masks, grids, strict=True)]
    labelled = [region for region in regions if region is not None]
    weights = []
    for region, (rows, columns) in zip(regions, grids, strict=True):
        even = np.full((rows, columns), 1 / (rows * columns))
        own = region
        if own is None:
            own = np.mean([_resized(other, (rows, columns)) for other in labelled], axis=0) if labelled else even
        weights.append(region_weight * own + (1 - region_weight) * even)
    return weights


def _region(mask: npt.NDArray[np.uint8], grid: tuple[int, ...]) -> Weights | None:
    values = [int(value) for value in np.unique(mask) if value > 0]
    if not values:
        return None
    planes = torch.from_numpy(np.stack([mask == value for value in values]).astype(np.float64))
    shares: Weights = adaptive_avg_pool2d(planes, (grid[0], grid[1])).numpy()
    return np.asarray(np.mean(shares / shares.sum(axis=(1, 2), keepdims=True), axis=0), dtype=np.float64)


def _resized(weights: Weights, grid: tuple[int, int]) -> Weights:
    rows, columns = ((np.arange(wanted) * have // wanted) for wanted, have in zip(grid, weights.shape, strict=True))
    taken = weights[np.ix_(rows, columns)]
    total = taken.sum()
    return taken / total if total > 0 else np.full(grid, 1 / (grid[0] * grid[1]))

"""Which index a number of vectors deserves, by FAISS's guidance and by what was measured (docs/retrieval.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rfss_core.errors import SettingsError
from rfss_core.settings.index import IndexKind, IndexSettings

EXACT_BELOW = 10_000
"""Fewer vectors than this are compared with each: one matrix product is as fast as inverted lists."""
FLAT_LISTS_TO = 1_000_000
"""Up to here the lists hold float32; beyond, a quarter of the memory at 8 bits a component."""
LEAST_TRAIN_POINTS = 39
"""FAISS warns about k-means with fewer points a centroid."""
HELD_SHARE = 0.1
"""Share of the rows that may be held out of the training: recall is measured on them."""
PQ_BITS = 8


@dataclass(frozen=True)
class IndexPlan:
    """How an index is built."""

    kind: IndexKind
    nlist: int
    """Inverted lists; 0 for an exact index."""
    train_rows: int
    """Vectors of the sample, at most; 0 for an exact index."""


def plan_index(rows: int, settings: IndexSettings) -> IndexPlan:
    """Choose kind, lists and training sample.

    Lists follow FAISS's "Guidelines to choose an index": about 4 sqrt(N) below a million vectors, 16384 to ten
    million, 65536 to 300 million, 262144 beyond; never so many that a list has fewer than 39 training vectors.

    Args:
        rows: vectors that will be indexed.
        settings: kind and lists, where they are overridden.

    Raises:
        SettingsError: too few vectors for the kind or the lists that were asked for.
    """
    kind: IndexKind
    if settings.kind != "auto":
        kind = settings.kind
    elif rows < EXACT_BELOW:
        kind = "flat"
    else:
        kind = "ivf-flat" if rows <= FLAT_LISTS_TO else "ivf-sq8"
    if kind == "flat":
        return IndexPlan(kind, 0, 0)
    most = math.floor(rows * (1 - HELD_SHARE)) // LEAST_TRAIN_POINTS
    if most < 1 or (kind == "ivf-pq" and rows < 2 * LEAST_TRAIN_POINTS * 2**PQ_BITS):
        raise SettingsError(f"{rows} vectors are too few to train an index of kind '{kind}'; use index.kind flat")
    if settings.nlist is not None and settings.nlist > most:
        raise SettingsError(
            f"index.nlist is {settings.nlist}, but {rows} vectors train at most {most} lists; leave nlist out"
        )
    nlist = settings.nlist or min(most, _guided_lists(rows))
    points = nlist * settings.train_points
    if kind == "ivf-pq":
        points = max(points, LEAST_TRAIN_POINTS * 2**PQ_BITS)
    return IndexPlan(kind, nlist, min(rows, points))


def _guided_lists(rows: int) -> int:
    if rows <= FLAT_LISTS_TO:
        return max(1, round(4 * math.sqrt(rows)))
    if rows <= 10_000_000:
        return 16_384
    return 65_536 if rows <= 300_000_000 else 262_144

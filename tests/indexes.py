"""Small stored indexes for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rfss_core.retrieval.building import build
from rfss_core.retrieval.generations import Generations
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import ArraySource
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.settings import IndexSettings
from rfss_core.store import Files

DIM = 24


def clustered(rows: int, seed: int = 0, copies: bool = False) -> np.ndarray:
    """Return float16 [rows, DIM] in runs of 8 rows from 30 clusters."""
    centres = np.random.default_rng(99).normal(size=(30, DIM))
    rng = np.random.default_rng(seed)
    found = np.repeat(centres[rng.integers(0, 30, -(-rows // 8))], 8, axis=0)[:rows]
    found = found + 0.4 * rng.normal(size=found.shape)
    return (found[rng.integers(0, max(1, rows // 4), rows)] if copies else found).astype(np.float16)


def queries(count: int, seed: int = 7) -> np.ndarray:
    return unit_vectors(clustered(count, seed))[0]


def settings_of(**values: Any) -> IndexSettings:
    return IndexSettings(**{"kind": "ivf-flat", "exact_rows": 1500, "tune_queries": 64, "seed": 3, **values})


def stored_index(folder: Path, vectors: np.ndarray, **values: Any) -> tuple[ShardedIndex, Generations]:
    """Build, publish and open."""
    settings = settings_of(**values)
    generations = Generations(Files(folder), "index")
    groups = np.arange(len(vectors)) // 8
    build(ArraySource(vectors), settings, generations, 8, groups)
    return ShardedIndex(generations, settings=settings), generations

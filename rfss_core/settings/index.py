"""Settings of the approximate index: kind, recall, shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel

IndexKind = Literal["flat", "ivf-flat", "ivf-sq8", "ivf-pq"]
"""Exact, or FAISS inverted lists of float32, 8-bit scalar-quantised or product-quantised vectors."""

PLACING = frozenset({"shard_rows", "merge", "drift_share", "check", "gpu", "cache"})
"""Fields that change no neighbour (``gpu``: up to ties), and so stay out of the fingerprint."""


class IndexSettings(SettingsModel):
    """How support slices are indexed once there are too many to compare with each; field ``index`` of the settings."""

    kind: Literal["auto", "flat", "ivf-flat", "ivf-sq8", "ivf-pq"] = Field(
        "auto",
        description="flat: exact. ivf-*: FAISS inverted lists of float32, 8-bit or product-quantised vectors. auto: "
        "exact below 10,000 slices, ivf-flat to 1,000,000, ivf-sq8 beyond.",
    )
    target_recall: float = Field(
        0.99, gt=0, le=1, description="Least share of the true k nearest that an approximate index is tuned to find."
    )
    nlist: int | None = Field(None, ge=1, le=2**20, description="Inverted lists. Default: FAISS's guidance by size.")
    nprobe: int | None = Field(
        None, ge=1, description="Lists searched for a query. Default: tuned against exact search to target_recall."
    )
    train_points: int = Field(64, ge=39, le=256, description="Training vectors for each inverted list.")
    tune_queries: int = Field(1024, ge=64, description="Stored vectors that recall is tuned and measured on.")
    exact_rows: int = Field(
        20_000, ge=1, description="A filter that leaves no more rows than this is searched exactly, whatever the kind."
    )
    shard_rows: int = Field(250_000, ge=1, description="Vectors in one shard: the unit of parallel building.")
    merge: bool = Field(
        True,
        description="Join the shards' lists in one on-disk file once they are built: searches read it twice as fast, "
        "and it takes the lists' bytes a second time.",
    )
    drift_share: float = Field(
        0.05, gt=0, le=1, description="Share of new vectors far from every list above which retraining is advised."
    )
    check: Literal["full", "quick"] = Field(
        "full", description="What opening an index verifies. full: sha256 of every file. quick: sizes, shapes and rows."
    )
    gpu: bool = Field(True, description="Train, add and search on GPUs where faiss-gpu sees any.")
    cache: str | None = Field(
        None, description="Folder for local copies of an object store's index files. Default: ~/.cache/rfss/index."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the training sample, of k-means and of the recall's.")

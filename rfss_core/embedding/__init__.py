"""Embedding of slices with DINOv2.

The names load lazily, because the shape and range checks of :mod:`rfss_core.embedding.slices` must not cost a torch
import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfss_core.embedding.embedder import Dinov2Embedder, Embedder, load_embedder

__all__ = ["Dinov2Embedder", "Embedder", "load_embedder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rfss_core.embedding.embedder"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

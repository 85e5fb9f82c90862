"""Models in worker processes: built by factories on first use, once a process, never pickled (invariant 9)."""

from __future__ import annotations

from functools import lru_cache

from rfss_core.embedding import Embedder, load_embedder
from rfss_core.presets import PRESETS
from rfss_core.segmentation import Segmenter, load_segmenter
from rfss_core.segmentation.memory_store import ZarrMemoryStore
from rfss_core.settings import EmbeddingSettings, PresetName, SegmentationSettings


@lru_cache(maxsize=2)
def embedder_for(settings: EmbeddingSettings, preset: PresetName, device: str) -> Embedder:
    """Return this process's embedder for these settings."""
    return load_embedder(settings, PRESETS[preset], device)


@lru_cache(maxsize=2)
def segmenter_for(settings: SegmentationSettings, preset: PresetName, workspace: str) -> Segmenter:
    """Return this process's segmenter for these settings; its memories are kept in the workspace."""
    return load_segmenter(settings, PRESETS[preset], memories=ZarrMemoryStore(f"{workspace}/memories"))


def segmenter_name(settings: SegmentationSettings, preset: PresetName) -> str:
    """Return what a report calls the segmenter: its model, or ``label-fusion``."""
    if settings.segmenter == "label-fusion":
        return settings.segmenter
    return settings.model or PRESETS[preset].segmentation_model

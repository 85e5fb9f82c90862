"""Models in worker processes: built by factories on first use, once a process, never pickled (invariant 9)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np

from rfss_core.embedding import Embedder, load_embedder
from rfss_core.presets import PRESETS
from rfss_core.segmentation import Segmenter, load_segmenter
from rfss_core.segmentation.memory_store import ZarrMemoryStore
from rfss_core.segmentation.points import PointPromptSegmenter, load_point_segmenter
from rfss_core.settings import SUPERVISED, EmbeddingSettings, PresetName, SegmentationSettings
from rfss_core.store import Workspace
from rfss_core.training import SupervisedModel, SupervisedSegmenter
from rfss_core.weights.device import resolve_device

Given = ParamSpec("Given")
Built = TypeVar("Built")

TRAIN_STAGE, NETWORK_CHUNK = "train", "network"
"""Where stage train keeps the network of a supervised baseline."""


def built_once(kept: int) -> Callable[[Callable[Given, Built]], Callable[Given, Built]]:
    """Keep what a factory builds, also where two threads ask at once: the second waits for the first one's.

    Args:
        kept: how many different ones a process keeps.
    """

    def decorate(factory: Callable[Given, Built]) -> Callable[Given, Built]:
        cached, lock = lru_cache(maxsize=kept)(factory), threading.RLock()

        @wraps(factory)
        def get(*args: Given.args, **kwargs: Given.kwargs) -> Built:
            with lock:
                return cached(*args, **kwargs)  # type: ignore[arg-type]

        return get

    return decorate


@dataclass(frozen=True)
class Network:
    """Where a trained network is; small and picklable."""

    workspace: str
    key: str

    def read(self) -> bytes:
        """Return the stored safetensors file."""
        store = Workspace.open(self.workspace).stage(TRAIN_STAGE, self.key)
        return np.asarray(store.read_array(NETWORK_CHUNK, "weights"), dtype=np.uint8).tobytes()


@built_once(2)
def embedder_for(settings: EmbeddingSettings, preset: PresetName, device: str) -> Embedder:
    """Return this process's embedder for these settings."""
    return load_embedder(settings, PRESETS[preset], device)


@built_once(2)
def segmenter_for(settings: SegmentationSettings, preset: PresetName, workspace: str) -> Segmenter:
    """Return this process's segmenter for these settings; its memories are kept in the workspace."""
    return load_segmenter(settings, PRESETS[preset], memories=ZarrMemoryStore(f"{workspace}/memories"))


@built_once(2)
def point_segmenter_for(settings: SegmentationSettings, preset: PresetName, seed: int) -> PointPromptSegmenter:
    """Return this process's point-prompt baseline for these settings."""
    positive, negative = settings.points or (1, 0)
    return load_point_segmenter(settings, PRESETS[preset], positive=positive, negative=negative, seed=seed)


@built_once(2)
def network_for(network: Network, device: str) -> SupervisedSegmenter:
    """Return this process's copy of a network that the workspace holds."""
    return SupervisedSegmenter(SupervisedModel.from_bytes(network.read()), resolve_device(device))


def segmenter_name(settings: SegmentationSettings, preset: PresetName) -> str:
    """Return what a report calls the segmenter: its model, or its own name where it takes no model."""
    if settings.segmenter == "label-fusion" or settings.segmenter in SUPERVISED:
        return settings.segmenter
    return settings.model or PRESETS[preset].segmentation_model

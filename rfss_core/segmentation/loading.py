"""From settings and a preset to a SAM 2 segmenter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from rfss_core.digest import digest_file, digest_json
from rfss_core.errors import SettingsError
from rfss_core.presets import Preset
from rfss_core.segmentation.adapter import Sam2Adapter
from rfss_core.segmentation.compilation import check_compiler, compile_parts
from rfss_core.segmentation.engine import MemorySegmenter
from rfss_core.segmentation.memory import ENCODING_VERSION, MemoryBank, MemoryStore
from rfss_core.segmentation.transformers_adapter import TransformersAdapter
from rfss_core.settings import SegmentationSettings
from rfss_core.weights import load_checkpoint, resolve_model

# Hub configurations of SAM 2 say either; both hold the parameters of the video model.
_MODEL_TYPES = ("sam2_video", "sam2")


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter, the sha256 of its weights, and whether they were ever trained."""

    adapter: Sam2Adapter
    digest: str
    trained: bool


def choose_device(name: str) -> torch.device:
    """Return the device that a setting names.

    Args:
        name: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.

    Raises:
        SettingsError: an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise SettingsError(f"device '{name}' is not known; use auto, cpu, cuda or cuda:<n>")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SettingsError(f"device '{name}' is not in this machine; use auto or cpu")
    return device


def load_adapter(model: str, revision: str | None, device: torch.device, dtype: torch.dtype) -> LoadedAdapter:
    """Load a SAM 2 network.

    Args:
        model: hub id, local folder, ``embedded:<name>``, or a checkpoint of Meta's (``.pt``), which Meta's ``sam2``
            package then runs.
        revision: hub commit.
        device: where it computes.
        dtype: its arithmetic.

    Returns:
        The adapter, the weights' digest, and whether they were trained.

    Raises:
        ModelNotFoundError: no such model.
        ModelError: not a SAM 2 network, or broken weights.
    """
    from transformers import Sam2VideoModel

    checkpoint = Path(model)
    if checkpoint.suffix == ".pt":
        from rfss_core.segmentation.meta_adapter import MetaAdapter, load_meta_network

        network = load_meta_network(checkpoint)
        return LoadedAdapter(MetaAdapter(network, device, dtype), digest_file(checkpoint), trained=True)
    reference = resolve_model(model, revision)
    return LoadedAdapter(
        TransformersAdapter(load_checkpoint(reference, Sam2VideoModel, _MODEL_TYPES), device, dtype),
        reference.digest,
        reference.trained,
    )


def load_memory_segmenter(
    settings: SegmentationSettings, preset: Preset, memories: MemoryStore | None
) -> MemorySegmenter:
    """Build the ``sam2-memory`` segmenter; see :func:`rfss_core.segmentation.segmenter.load_segmenter`."""
    device = choose_device(settings.device)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    if settings.compile:
        check_compiler(device)
    # The preset's revision belongs to the preset's model alone.
    revision = settings.revision or (preset.segmentation_revision if settings.model is None else None)
    loaded = load_adapter(settings.model or preset.segmentation_model, revision, device, dtype)
    mode = settings.support_masks or preset.support_masks
    parts = {"encoding": ENCODING_VERSION, "weights": loaded.digest, "mode": mode, "dtype": settings.dtype}
    if settings.compile:
        # Fused operations round differently: the last bits of memories and logits move.
        parts["compiled"] = torch.__version__
    bank = MemoryBank(digest_json(parts), settings.host_cache_mb * 2**20, memories)
    segmenter = MemorySegmenter(loaded.adapter, bank, settings, mode=mode, trained=loaded.trained)
    if settings.compile:
        compile_parts(loaded.adapter, segmenter.attention)
    return segmenter

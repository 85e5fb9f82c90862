"""The way to get a segmenter."""

from __future__ import annotations

from rfss_core.errors import SettingsError
from rfss_core.presets import Preset
from rfss_core.segmentation.memory import MemoryStore
from rfss_core.segmentation.segmenter import Segmenter
from rfss_core.settings import BASELINES, SegmentationSettings, SegmenterName


def baseline_error(name: SegmenterName) -> SettingsError:
    """Return the error that says why a baseline does not label."""
    why = "it is prompted from the ground truth" if name == "sam2-points" else "it is trained, not retrieved from"
    return SettingsError(
        f"segmenter '{name}' is a baseline and labels nothing: {why}; label with sam2-memory or label-fusion, and "
        "measure the baseline with `rfss evaluate`"
    )


def load_segmenter(settings: SegmentationSettings, preset: Preset, *, memories: MemoryStore | None = None) -> Segmenter:
    """Build the segmenter that settings and preset name.

    Args:
        settings: how memories become masks; what is None there comes from the preset.
        preset: named pair of models.
        memories: persistent store of memories, for example
            :class:`rfss_core.segmentation.memory_store.ZarrMemoryStore`; None keeps them in this process only.

    Returns:
        A segmenter, ready to use. Build it inside the worker; never pickle it.

    Raises:
        ModelNotFoundError: no such model here or at the hub.
        ModelError: weights that cannot be used.
        SettingsError: a device that this machine does not have, or a baseline, which needs more than a support set.
    """
    if settings.segmenter in BASELINES:
        raise baseline_error(settings.segmenter)
    if settings.segmenter == "label-fusion":
        from rfss_core.segmentation.label_fusion import LabelFusionSegmenter

        return LabelFusionSegmenter()
    # Imported late: label fusion needs neither torch modules nor transformers.
    from rfss_core.segmentation.loading import load_memory_segmenter

    return load_memory_segmenter(settings, preset, memories)

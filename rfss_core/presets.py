"""Presets: named pairs of models and settings."""

from __future__ import annotations

from dataclasses import dataclass

from rfss_core.settings import PresetName, SupportMaskMode


@dataclass(frozen=True)
class Preset:
    """One named pair of models."""

    embedding_model: str
    """Hub id, local folder, or ``embedded:<folder of rfss_core/weights>``."""
    segmentation_model: str
    """Hub id, local folder, or ``embedded:<folder of rfss_core/weights>``."""
    k: int
    """Support slices retrieved per query."""
    support_masks: SupportMaskMode
    """How a support's mask reaches the memory encoder."""
    purpose: str
    """One line for help texts."""
    embedding_revision: str | None = None
    """Hub commit of ``embedding_model``; None takes the hub's main branch, whose commit the run records."""
    segmentation_revision: str | None = None
    """Hub commit of ``segmentation_model``; None takes the hub's main branch, whose commit the run records."""


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(
        "embedded:dinov2-tiny",
        "embedded:sam2-tiny",
        8,
        "direct",
        "offline default: small embedded models, CPU",
    ),
    "fast": Preset(
        "facebook/dinov2-with-registers-small", "facebook/sam2.1-hiera-tiny", 8, "direct", "one GPU or a patient CPU"
    ),
    "paper": Preset(
        "facebook/dinov2-with-registers-small", "facebook/sam2-hiera-large", 16, "meta", "the setting of Zhao et al."
    ),
    "best": Preset("facebook/dinov2-with-registers-base", "facebook/sam2.1-hiera-large", 8, "direct", "quality first"),
}

"""Settings of embedding: which DINOv2 describes a slice."""

from __future__ import annotations

from pydantic import Field

from rfss_core.settings.base import SettingsModel


class EmbeddingSettings(SettingsModel):
    """Which DINOv2 describes a slice."""

    model: str | None = Field(
        None, description="Hub id, local folder, or embedded:dinov2-tiny. Default: the preset's model."
    )
    revision: str | None = Field(None, description="Hub commit to pin. Default: the preset's.")
    batch_size: int = Field(32, ge=1, le=4096, description="Slices in one forward pass.")

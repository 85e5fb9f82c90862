"""Settings of retrieval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel

Strategy = Literal["dino", "random"]


class RetrievalSettings(SettingsModel):
    """Which labelled slices serve a query."""

    strategy: Strategy = Field("dino", description="dino: nearest embeddings. random: seeded draw, for comparison.")
    support_slices: int | None = Field(
        None, ge=1, description="Use only so many support slices, drawn evenly over patients. Default: all."
    )

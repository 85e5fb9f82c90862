"""Settings of the choice of slices to label next."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel

Objective = Literal["mean", "radius"]


class SelectionSettings(SettingsModel):
    """Which slices to label next. Nothing here changes a pseudo-label."""

    n: int = Field(50, ge=1, le=1_000_000, description="Slices to choose.")
    objective: Objective = Field(
        "mean",
        description="What is kept small. mean: the mean distance of all slices to the nearest chosen one (facility "
        "location). radius: the largest one (k-center), which asks for outliers first.",
    )
    spread: bool = Field(True, description="Let patients take turns, one slice each.")
    per_patient: int | None = Field(None, ge=1, description="Slices of one patient at most. Default: no limit.")
    random_draws: int = Field(5, ge=1, le=100, description="Random choices that the coverage is compared with.")
    duplicate_distance: float | None = Field(
        0.02,
        ge=0,
        le=2,
        description="L2 distance between embeddings up to which slices are near-duplicates. None: do not look.",
    )

"""Settings of quality: what counts as good enough."""

from __future__ import annotations

from pydantic import Field, model_validator

from rfss_core.settings.base import SettingsModel


class QualitySettings(SettingsModel):
    """What counts as good enough."""

    min_dice: float = Field(
        0.7, ge=0, le=1, description="The data set's gate: least mean Dice over classes on held-out patients."
    )
    accept_dice: float = Field(
        0.8,
        ge=0,
        le=1,
        description="A case whose Dice reaches this at the chosen confidence (its lower bound) is accepted unseen.",
    )
    reject_dice: float = Field(0.5, ge=0, le=1, description="A case whose predicted Dice is below this is rejected.")
    confidence: float = Field(0.9, gt=0.5, lt=1, description="Confidence of the lower bound on predicted Dice.")
    min_class_dice: float = Field(
        0.0, ge=0, le=1, description="The gate, for every class: least mean Dice of a class. 0: not judged."
    )
    min_dice_low: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The gate, for the interval: least lower end of the mean Dice's 95 % interval. 0: not judged.",
    )
    max_quarantined: float = Field(
        0.5, ge=0, le=1, description="The gate: largest share of the cases that may have been set aside as unusable."
    )
    surface_tolerance: float = Field(
        2.0, ge=0, description="Millimetres that a surface may be off and still count in the surface Dice."
    )
    slice_metrics: bool = Field(
        True, description="Measure held-out cases slice by slice too, which takes a few times longer than by volume."
    )
    probe_share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Share of a case's slices that are segmented again to judge the case: from fewer supports, and the "
        "other way round as supports of labelled slices. 0: judge without.",
    )
    bootstrap: int = Field(2000, ge=100, description="Bootstrap resamples over patients.")

    @model_validator(mode="after")
    def _rising(self) -> QualitySettings:
        if self.reject_dice > self.accept_dice:
            raise ValueError(f"reject_dice ({self.reject_dice}) must not exceed accept_dice ({self.accept_dice})")
        return self

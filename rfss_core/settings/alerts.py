"""Settings of alerts: when a run that passed its gate is still worth a message."""

from __future__ import annotations

from pydantic import Field

from rfss_core.settings.base import SettingsModel


class AlertSettings(SettingsModel):
    """When a run sends the event `rfss.quality.drift`. Nothing here changes a pseudo-label."""

    dice_drop: float = Field(
        0.05, ge=0, le=1, description="Fall of the mean held-out Dice since the workspace's last run that is told."
    )
    distant_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of unlabelled slices that is told when it lies farther from its nearest support slice than "
        "99 in 100 held-out slices do. Near 0.01 means: the new images look like the labelled ones.",
    )

"""Settings of promotion: when an accepted data set becomes the one that training jobs take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel

PromotionPolicy = Literal["manual", "better", "always"]


class PromotionSettings(SettingsModel):
    """When an accepted data set gets the alias `champion` by itself."""

    policy: PromotionPolicy = Field(
        "manual",
        description="manual: only `rfss promote` promotes. better: a data set that passed its gate is promoted when "
        "its held-out Dice exceeds the champion's by the margin, or when there is no champion. always: whenever the "
        "gate passed.",
    )
    margin: float = Field(
        0.01, ge=0, le=1, description="Policy better: mean held-out Dice that the new data set must be ahead."
    )
    same_held_out: bool = Field(
        False,
        description="Policy better: promote only where both were measured on the same held-out patients; otherwise the "
        "difference is noted and the figures are compared all the same.",
    )

"""What all settings objects share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsModel(BaseModel):
    """Immutable settings that refuse unknown fields and check their defaults too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

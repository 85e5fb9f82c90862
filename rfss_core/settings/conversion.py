"""Settings of ``rfss data convert``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel


class ConversionSettings(SettingsModel):
    """How a public data set's folder becomes ``images`` and ``labels``."""

    frames: Literal["annotated", "all"] = Field(
        "annotated",
        description="Of cine series (ACDC, M&Ms). annotated: end-diastole and end-systole. all: the other time points "
        "too, as images to label.",
    )
    link: bool = Field(
        False,
        description="Hard-link files that need no change instead of copying them, where the file system can: no disk "
        "space, and whoever changes one changes both.",
    )
    keep_going: bool = Field(
        False,
        description="Go on where masks are missing (the image counts as unlabelled) or cannot be used (the case is "
        "left out); source.json lists them.",
    )

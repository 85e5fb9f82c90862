"""Settings of imaging: how images become slices."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from rfss_core.settings.base import SettingsModel


class ImagingSettings(SettingsModel):
    """How images become slices."""

    patient_pattern: str | None = Field(
        None,
        description="Regular expression that finds the patient in a file name (first group, else whole match). "
        "Default: BIDS sub-ID, else patientNNN, else the whole name. DICOM uses PatientID.",
    )
    slice_axis: Literal["auto", 0, 1, 2] = Field(
        "auto",
        description="Source axis to slice along. auto: the axis with the coarsest spacing, else the last.",
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="Percentiles of a volume that become 0 and 1 (robust normalisation)."
    )
    window: tuple[float, float] | None = Field(
        None,
        description="CT window as (centre, width) in Hounsfield units; replaces the percentiles when set.",
    )
    max_voxels: int = Field(
        2**30, ge=1, description="Largest number of voxels that a header may declare; more is quarantined."
    )
    non_finite: Literal["quarantine", "fill"] = Field(
        "quarantine",
        description="NaN and infinite voxels: quarantine the case, or fill them with the least finite value.",
    )
    empty_labels: Literal["quarantine", "keep"] = Field(
        "quarantine", description="Label files without any foreground: quarantine the case, or keep it as negative."
    )
    classes: dict[int, str] | None = Field(
        None, description="Names of the label values, for example {1: RV, 2: Myo, 3: LV}. Default: the values found."
    )

    @field_validator("patient_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"'{value}' is not a regular expression ({error})") from error
        return value

    @field_validator("percentiles")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError(f"percentiles must rise from 0 to 100 at most, got {value}")
        return value

    @field_validator("window")
    @classmethod
    def _wide(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[1] <= 0:
            raise ValueError(f"the window's width must be above 0, got {value[1]}")
        return value

    @field_validator("classes")
    @classmethod
    def _foreground(cls, value: dict[int, str] | None) -> dict[int, str] | None:
        if value is not None:
            if any(not 1 <= number <= 255 for number in value):
                raise ValueError("class values go from 1 to 255; 0 is the background")
            if len(set(value.values())) != len(value):
                raise ValueError("class names must differ")
        return value

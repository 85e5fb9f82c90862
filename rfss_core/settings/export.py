"""Settings of an export: which cases, in which format."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from rfss_core.settings.base import SettingsModel

ExportFormat = Literal["nifti", "nnunet", "monai", "bids", "dicom-seg", "ome-zarr"]
ExportedDecision = Literal["accept", "review", "reject"]


class ExportSettings(SettingsModel):
    """What an export holds, and how."""

    format: ExportFormat = Field("nifti", description="Whose layout to write.")
    decisions: tuple[ExportedDecision, ...] = Field(
        ("accept", "review"), min_length=1, description="Export the pseudo-labels decided so."
    )
    ignore: float | None = Field(
        None, gt=0, le=1, description="Voxels of at least this uncertainty become class `ignore`. Default: none do."
    )
    with_expert: bool = Field(
        False, description="Export the cases with an expert's or a reviewed label map too, for training."
    )
    held_out_as_test: bool = Field(
        False, description="Expert cases that the run held out become the test part (nnunet and monai)."
    )
    dataset_id: int | None = Field(
        None, ge=1, le=999, description="nnU-Net's number of the data set. Default: the first free one from 501."
    )
    original_names: bool = Field(
        False, description="Of a workspace with salted case ids: export the names that they stand for."
    )
    concepts: dict[str, tuple[str, str, str]] = Field(
        default_factory=dict,
        description="DICOM-SEG: class name to (code value, coding scheme, meaning). Default: a built-in table.",
    )

    @field_validator("decisions")
    @classmethod
    def _in_order(cls, value: tuple[ExportedDecision, ...]) -> tuple[ExportedDecision, ...]:
        return tuple(decision for decision in get_args(ExportedDecision) if decision in value)

    @model_validator(mode="after")
    def _consistent(self) -> ExportSettings:
        if self.held_out_as_test and not self.with_expert:
            raise ValueError("the test part is made of expert cases: add --with-expert to --held-out-as-test")
        if self.held_out_as_test and self.format not in ("nnunet", "monai"):
            raise ValueError(f"format {self.format} has no test part; --held-out-as-test is for nnunet and monai")
        if self.dataset_id is not None and self.format != "nnunet":
            raise ValueError(f"format {self.format} has no number; --dataset-id is for nnunet")
        if self.concepts and self.format != "dicom-seg":
            raise ValueError(f"format {self.format} has no coded concepts; --concepts is for dicom-seg")
        return self

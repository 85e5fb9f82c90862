"""Settings of training: how supervised networks are trained on labelled slices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel


class SupervisedSettings(SettingsModel):
    """How a supervised network is trained on labelled slices."""

    image_size: int = Field(
        256,
        ge=32,
        le=2048,
        description="Longest side in pixels; larger slices are shrunk, smaller ones never enlarged.",
    )
    width: int = Field(
        16,
        ge=4,
        le=256,
        description="Size of the network: channels of the U-Net's finest level, each coarser level has twice as many; "
        "16 is also MONAI's default SwinUNETR (24 features) and SegFormer's B0.",
    )
    steps: int = Field(500, ge=1, description="Optimizer steps at most; the learning rate falls to zero over them.")
    batch_size: int = Field(8, ge=1, le=1024, description="Slices in one step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak rate of AdamW.")
    round_steps: int = Field(
        25, ge=1, description="Steps between two looks at the validation patients, and between two checkpoints."
    )
    patience: int = Field(8, ge=1, description="Rounds without a better validation Dice before training stops.")
    validation_share: float = Field(
        0.2, ge=0, le=0.5, description="Share of the patients that only choose the weights. 0: fixed schedule."
    )
    validation_patients: int = Field(
        5, ge=2, description="With fewer patients than this none validates and the schedule is fixed."
    )
    expert_share: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the slices of each step that experts labelled, where there are pseudo-labels too. "
        "Empty: every slice is drawn as often as every other.",
    )
    autocast: bool = Field(False, description="Mixed precision in training, on CUDA only.")
    half: Literal["bfloat16", "float16"] = Field(
        "bfloat16", description="Arithmetic of autocast. float16 scales the loss so that small gradients survive."
    )

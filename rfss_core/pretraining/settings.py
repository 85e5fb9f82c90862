"""Settings of one training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingSettings(BaseModel):
    """Everything that one training depends on. All but ``seed`` may change when a training is resumed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(256, ge=56, le=1024, description="Pixels a side. SAM 2: multiple of 32; DINOv2: of 14.")
    groups: int = Field(2, ge=1, le=4096, description="Groups (tasks) in one step.")
    members: int = Field(8, ge=2, le=64, description="Images in one group.")
    learning_rate: float = Field(4e-4, gt=0, description="Peak of the schedule (AdamW).")
    weight_decay: float = Field(0.02, ge=0, description="Of matrices; vectors have none.")
    warmup: int = Field(200, ge=0, description="Steps of linear warm-up.")
    horizon: int | None = Field(
        20000, ge=1, description="Step at which the cosine reaches its floor of 2 % of the peak; None: when time is up."
    )
    start: str | None = Field(None, description="Folder in the hub's format whose weights a new training starts from.")
    ema: float = Field(0.998, ge=0, lt=1, description="Decay of the averaged weights, which are what is exported.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, tasks and draws.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where to train.")
    autocast: bool = Field(False, description="bfloat16 arithmetic (recommended on CUDA).")
    workers: int = Field(0, ge=0, le=256, description="Processes that draw tasks; 0 draws in this process.")

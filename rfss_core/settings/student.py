"""Settings of students: supervised networks that are trained on a registered data set and the experts' labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rfss_core.settings.base import SettingsModel
from rfss_core.settings.training import SupervisedSettings

ArchitectureName = Literal["unet", "swin-unetr", "segformer"]


class StudentSettings(SettingsModel):
    """Everything that a student depends on: the parameters of flow ``train_student``."""

    dataset: str = Field(
        min_length=1,
        description="Data set of accepted pseudo-labels: NAME@ALIAS (hearts@champion), NAME/VERSION, or its folder or "
        "workspace.",
    )
    registry: str | None = Field(
        None,
        description="MLflow tracking URI, or the workspace whose embedded store holds the name. "
        "Default: MLFLOW_TRACKING_URI, then RFSS_WORKSPACE.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the student: it becomes a version of rfss-student.NAME. Default: the data set's.",
    )
    network: ArchitectureName = Field(
        "unet",
        description="unet: MONAI's residual U-Net. swin-unetr: MONAI's SwinUNETR. segformer: transformers' SegFormer. "
        "All from random weights.",
    )
    images: str | None = Field(
        None,
        description="Folder or glob of the images that experts labelled. Default: the labelled cases of the data set's "
        "workspace.",
    )
    labels: str | None = Field(None, description="Folder or glob of their label maps; given together with images.")
    decisions: tuple[Literal["accept", "review", "reject"], ...] = Field(
        ("accept",), min_length=1, description="Pseudo-labelled cases that train."
    )
    weighted: bool = Field(True, description="Weigh each pseudo-labelled case by its predicted Dice.")
    ignore: float | None = Field(
        None, gt=0, le=1, description="Voxels of at least this uncertainty teach nothing. Default: all teach."
    )
    test_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the experts' patients who served no pseudo-label that are tested only; the others "
        "of them validate. Of an own folder of images: share of all patients.",
    )
    compare: bool = Field(
        True,
        description="Also train the network on the experts' labels alone, measure both on the same test patients, and "
        "write what the pseudo-labels brought into the data set's card. Doubles the time, but for the first time only.",
    )
    training: SupervisedSettings = Field(default_factory=SupervisedSettings, description="How the network is trained.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, order, augmentation, splits and the bootstrap.")
    device: str = Field("auto", description="auto, cpu, cuda, or cuda:0 and so on. auto takes CUDA where there is one.")
    system_metrics: bool = Field(
        False,
        description="Log the load of processor, memory, disk, network and GPU to MLflow while it trains, every 10 s; "
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it too.",
    )
    folder: str | None = Field(
        None,
        description="Folder or fsspec URL of checkpoints and the trained model. Default: students/ in the data set's "
        "workspace.",
    )

    @field_validator("labels")
    @classmethod
    def _both(cls, value: str | None, info: object) -> str | None:
        if (value is None) != (getattr(info, "data", {}).get("images") is None):
            raise ValueError("images and labels are given together or not at all")
        return value

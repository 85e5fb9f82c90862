"""Settings of segmentation: which segmenter, and how memories become masks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rfss_core.settings.base import SettingsModel

SegmenterName = Literal["sam2-memory", "sam2-points", "label-fusion", "unet", "swin-unetr", "segformer"]
SUPERVISED: frozenset[SegmenterName] = frozenset({"unet", "swin-unetr", "segformer"})
"""Segmenters that are trained on the support set before they segment."""
BASELINES: frozenset[SegmenterName] = SUPERVISED | {"sam2-points"}
"""Segmenters that are measured and never label: they read the ground truth, or do not use what was retrieved."""
SupportMaskMode = Literal["meta", "direct"]
MergeRule = Literal["logits", "softmax", "exclusive"]


class SegmentationSettings(SettingsModel):
    """How memories become masks."""

    segmenter: SegmenterName = Field(
        "sam2-memory",
        description="sam2-memory: SAM 2 memory attention. label-fusion: vote of the retrieved masks. "
        "Only to be measured: sam2-points (SAM 2 prompted from the ground truth), unet, swin-unetr and segformer "
        "(trained on the support set).",
    )
    points: tuple[int, int] | None = Field(
        None,
        description="Points that sam2-points draws from the ground truth, inside and outside each class: 1 or 1,1. "
        "Default: 1.",
    )
    model: str | None = Field(
        None, description="Hub id, local folder, or embedded:sam2-tiny. Default: the preset's model."
    )
    revision: str | None = Field(None, description="Hub commit to pin. Default: the preset's.")
    support_masks: SupportMaskMode | None = Field(
        None, description="meta: the official 256-pixel round trip. direct: native masks. Default: the preset's."
    )
    object_score_threshold: float | None = Field(
        0.0, description="A class whose object score (logit) is not above this is absent. None: no gate."
    )
    use_object_pointers: bool = Field(True, description="Let object pointers join the memories.")
    class_supports: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Supports of each class, chosen for it among the k retrieved: the nearest that have the class and "
        "a share that lack it. Default: all k serve every class.",
    )
    absent_share: float = Field(
        0.25, ge=0, le=1, description="Share of class_supports that should lack the class (negative evidence)."
    )
    volume_memories: int = Field(
        0,
        ge=0,
        le=6,
        description="Slices of the same volume, labelled just before, that join a slice's supports as memories (SAM "
        "2's non-conditioning memories), up and down the volume. 0: every slice is labelled for itself.",
    )
    merging: MergeRule = Field(
        "logits",
        description="How classes share pixels. logits: the highest logit above 0. softmax: soft aggregation. "
        "exclusive: the official predictor's non-overlap rule.",
    )
    background_stride: int = Field(
        1,
        ge=1,
        le=256,
        description="Side of the blocks, in memory cells of 16 x 16 network pixels, of a support's background of which "
        "one cell stands for all in attention: faster, not exact. 1: memories stay whole.",
    )
    background_border: int = Field(
        2, ge=0, le=256, description="Cells around a support's foreground that background_stride leaves whole."
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Queries in one forward pass, if they fit into memory.")
    host_cache_mb: int = Field(1024, ge=0, description="Memories kept in main memory, MiB.")
    device_cache_mb: int = Field(
        2048, ge=0, description="Memories kept on the accelerator, and reduced ones on any device, MiB."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Arithmetic of the models.")
    device: str = Field(
        "auto", description="auto, cpu, cuda or cuda:0, cuda:1 and so on. auto takes CUDA where there is one."
    )
    compile: bool = Field(
        False,
        description="Compile the image encoder and parts of the attention (torch.compile): the first slices take "
        "minutes, later ones less time. Needs a C++ compiler. Moves the last bits of logits.",
    )

    @field_validator("points", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        if value is None:
            return None
        parts = str(value).split(",") if isinstance(value, str | int) else list(value)
        counts = [int(part) if str(part).strip().isdecimal() else -1 for part in parts]
        if len(counts) not in (1, 2) or not 1 <= counts[0] <= 100 or not 0 <= counts[-1] <= 100:
            raise ValueError("points are POSITIVE or POSITIVE,NEGATIVE, from 1 and from 0 to 100, for example 2,2")
        return (counts[0], counts[1] if len(counts) == 2 else 0)

    @model_validator(mode="after")
    def _prompted(self) -> SegmentationSettings:
        if self.points is not None and self.segmenter != "sam2-points":
            raise ValueError(f"points belong to segmenter sam2-points, not to {self.segmenter}; leave points out")
        return self

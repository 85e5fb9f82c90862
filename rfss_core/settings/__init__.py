"""Settings: one pydantic object that the library, the flow's form, the command line and YAML files share.

Every field carries its description, default and bounds, because Prefect's UI and ``rfss label --help`` are generated
from here. Fields that change pseudo-labels are part of the run's fingerprint; :meth:`LabelSettings.scientific`
returns just those.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.settings.base import SettingsModel
from rfss_core.settings.index import PLACING
from rfss_core.settings.index import IndexSettings as IndexSettings
from rfss_core.settings.retrieval import FilterSettings as FilterSettings
from rfss_core.settings.retrieval import RetrievalSettings as RetrievalSettings
from rfss_core.settings.retrieval import Strategy as Strategy
from rfss_core.settings.selection import Objective as Objective
from rfss_core.settings.selection import SelectionSettings as SelectionSettings

PresetName = Literal["tiny", "fast", "paper", "best"]
SegmenterName = Literal["sam2-memory", "sam2-points", "label-fusion", "unet"]
SUPERVISED: frozenset[SegmenterName] = frozenset({"unet"})
"""Segmenters that are trained on the support set before they segment."""
BASELINES: frozenset[SegmenterName] = SUPERVISED | {"sam2-points"}
"""Segmenters that are measured and never label: they read the ground truth, or do not use what was retrieved."""
SupportMaskMode = Literal["meta", "direct"]
MergeRule = Literal["logits", "softmax", "exclusive"]


class ImagingSettings(SettingsModel):
    """How images become slices."""

    patient_pattern: str | None = Field(
        None,
        description="Regular expression that finds the patient in a file name (first group, else whole match). "
        "Default: BIDS sub-<id>, else patient<digits>, else the whole name. DICOM uses PatientID.",
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


class EmbeddingSettings(SettingsModel):
    """Which DINOv2 describes a slice."""

    model: str | None = Field(
        None, description="Hub id, local folder, or embedded:dinov2-tiny. Default: the preset's model."
    )
    revision: str | None = Field(None, description="Hub commit to pin. Default: the preset's.")
    batch_size: int = Field(32, ge=1, le=4096, description="Slices in one forward pass.")


class SegmentationSettings(SettingsModel):
    """How memories become masks."""

    segmenter: SegmenterName = Field(
        "sam2-memory",
        description="sam2-memory: SAM 2 memory attention. label-fusion: vote of the retrieved masks. "
        "Only to be measured: sam2-points (SAM 2 prompted from the ground truth), unet (trained on the support set).",
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
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<n>. auto takes CUDA where there is one.")
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


class SupervisedSettings(SettingsModel):
    """How a supervised network is trained on labelled slices."""

    image_size: int = Field(
        256,
        ge=32,
        le=2048,
        description="Longest side in pixels; larger slices are shrunk, smaller ones never enlarged.",
    )
    width: int = Field(
        16, ge=4, le=256, description="Channels of the finest level; each coarser level has twice as many."
    )
    steps: int = Field(500, ge=1, description="Optimizer steps at most; the learning rate falls to zero over them.")
    batch_size: int = Field(8, ge=1, le=1024, description="Slices in one step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak rate of AdamW.")
    round_steps: int = Field(25, ge=1, description="Steps between two looks at the validation patients.")
    patience: int = Field(8, ge=1, description="Rounds without a better validation Dice before training stops.")
    validation_share: float = Field(
        0.2, ge=0, le=0.5, description="Share of the patients that only choose the weights. 0: fixed schedule."
    )
    validation_patients: int = Field(
        5, ge=2, description="With fewer patients than this none validates and the schedule is fixed."
    )
    autocast: bool = Field(False, description="bfloat16 arithmetic in training, on CUDA only.")


class QualitySettings(SettingsModel):
    """What counts as good enough."""

    min_dice: float = Field(
        0.7, ge=0, le=1, description="The data set's gate: least mean Dice over classes on held-out patients."
    )
    accept_dice: float = Field(
        0.8,
        ge=0,
        le=1,
        description="A case whose Dice reaches this at the chosen confidence (its lower bound) is accepted unseen.",
    )
    reject_dice: float = Field(0.5, ge=0, le=1, description="A case whose predicted Dice is below this is rejected.")
    confidence: float = Field(0.9, gt=0.5, lt=1, description="Confidence of the lower bound on predicted Dice.")
    bootstrap: int = Field(2000, ge=100, description="Bootstrap resamples over patients.")

    @model_validator(mode="after")
    def _rising(self) -> QualitySettings:
        if self.reject_dice > self.accept_dice:
            raise ValueError(f"reject_dice ({self.reject_dice}) must not exceed accept_dice ({self.accept_dice})")
        return self


class ExecutionSettings(SettingsModel):
    """Where chunks run. Nothing here changes a pseudo-label."""

    executor: str = Field(
        "inline",
        description="inline: this process. local: Dask worker processes on this machine. "
        "tcp://host:port or tls://host:port: an existing Dask scheduler.",
    )
    workers: int | None = Field(None, ge=1, le=1024, description="Worker processes of `local`. Default: one a core.")
    threads: int | None = Field(None, ge=1, le=256, description="Threads of each worker. Default: cores / workers.")
    max_quarantined_fraction: float = Field(
        0.5, ge=0, le=1, description="The run fails when more than this share of the input is unusable."
    )

    @field_validator("executor")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in ("inline", "local") or value.startswith(("tcp://", "tls://")):
            return value
        raise ValueError(f"'{value}' is not an executor; use inline, local, or a scheduler's tcp:// or tls:// address")


class LabelSettings(SettingsModel):
    """Everything that one labelling run depends on: the parameters of flow ``label_dataset``."""

    images: str = Field(description="Folder or glob of images: NIfTI, DICOM series, PNG, TIFF, JPEG.")
    labels: str = Field(description="Folder or glob of label maps whose names pair with the images'.")
    workspace: str = Field(description="Folder or fsspec URL that holds everything of this labelling project.")
    preset: PresetName = Field("tiny", description="Named pair of models and settings.")
    k: int | None = Field(None, ge=1, le=256, description="Support slices retrieved per query. Default: the preset's.")
    held_out: float = Field(
        0.3, gt=0, lt=1, description="Share of the labelled patients kept out of the support set to measure quality."
    )
    dataset: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the data set. Default: the folder's.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the split, of random retrieval and of the bootstrap.")
    imaging: ImagingSettings = Field(default_factory=ImagingSettings, description="How images become slices.")
    embedding: EmbeddingSettings = Field(
        default_factory=EmbeddingSettings, description="Which DINOv2 describes a slice."
    )
    retrieval: RetrievalSettings = Field(
        default_factory=RetrievalSettings, description="Which labelled slices serve a query."
    )
    index: IndexSettings = Field(
        default_factory=IndexSettings, description="How support slices are indexed once there are many."
    )
    segmentation: SegmentationSettings = Field(
        default_factory=SegmentationSettings, description="How memories become masks."
    )
    training: SupervisedSettings = Field(
        default_factory=SupervisedSettings, description="How supervised baselines are trained on the support set."
    )
    quality: QualitySettings = Field(default_factory=QualitySettings, description="What counts as good enough.")
    selection: SelectionSettings = Field(
        default_factory=SelectionSettings, description="Which slices `rfss select` names to be labelled next."
    )
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings, description="Where chunks run.")

    def scientific(self) -> dict[str, Any]:
        """Return the settings that can change a pseudo-label, as plain JSON types (part of the fingerprint)."""
        places = ["images", "labels", "workspace", "dataset", "quality", "selection", "execution"]
        if self.segmentation.segmenter not in SUPERVISED:
            places.append("training")
        caches = {"host_cache_mb", "device_cache_mb"}
        # What the metadata say is part of the support set's digest; where their file lies changes nothing.
        inner = {"segmentation": caches, "retrieval": {"metadata"}, "index": set(PLACING)}
        return self.model_dump(mode="json", exclude={**dict.fromkeys(places, True), **inner})


class SelectSettings(LabelSettings):
    """The same for flow ``select_slices``, which needs no labels."""

    labels: str | None = Field(  # type: ignore[assignment]
        None, description="Folder or glob of label maps; their cases count as chosen. Default: none is labelled."
    )
    workspace: str = Field("", description="Folder or fsspec URL that keeps embeddings for later runs.")


def load_settings(
    overrides: dict[str, Any], config: Path | None = None, model: type[LabelSettings] = LabelSettings
) -> LabelSettings:
    """Merge a YAML file with overrides (which win) into validated settings.

    Args:
        overrides: nested dictionary of settings given explicitly; ``None`` values are ignored.
        config: YAML file with the fields of :class:`LabelSettings`.
        model: of a flow that asks for less.

    Returns:
        The validated settings.

    Raises:
        InputNotFoundError: the YAML file does not exist.
        SettingsError: a value is out of bounds, unknown or missing; the message lists each.
    """
    merged: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise InputNotFoundError(f"configuration file '{config}' does not exist; check --config")
        try:
            loaded = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"configuration file '{config}' is not valid YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise SettingsError(
                f"configuration file '{config}' must hold a mapping of settings, not a {type(loaded).__name__}"
            )
        merged = loaded
    _merge(merged, overrides)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(readable(error)) from error


def readable(error: ValidationError) -> str:
    """Return one line that names each bad setting, its value and what is allowed."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "settings"
        missing = item["type"] == "missing"
        message = "is missing; give it as an option or in the YAML file" if missing else item["msg"]
        message = message.removeprefix("Value error, ")
        given = "" if missing or isinstance(item["input"], dict) else f" (got {item['input']!r})"
        parts.append(f"{where} {message}" if missing else f"{where}: {message}{given}")
    return "; ".join(parts)


def _merge(into: dict[str, Any], extra: dict[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, dict):
            nested: dict[str, Any] = {}
            _merge(nested, value)
            if nested:
                into[key] = nested
        elif value is not None:
            into[key] = value

"""Settings: one pydantic object that the library, the flow's form, the command line and YAML files share.

Every field carries its description, default and bounds, because Prefect's UI and ``rfss label --help`` are generated
from here. Fields that change pseudo-labels are part of the run's fingerprint; :meth:`LabelSettings.scientific`
returns just those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import yaml
from pydantic import BaseModel, Field, ValidationError

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.settings.alerts import AlertSettings as AlertSettings
from rfss_core.settings.base import SettingsModel
from rfss_core.settings.embedding import EmbeddingSettings as EmbeddingSettings
from rfss_core.settings.execution import ExecutionSettings as ExecutionSettings
from rfss_core.settings.export import ExportedDecision as ExportedDecision
from rfss_core.settings.export import ExportFormat as ExportFormat
from rfss_core.settings.export import ExportSettings as ExportSettings
from rfss_core.settings.imaging import ImagingSettings as ImagingSettings
from rfss_core.settings.index import PLACING
from rfss_core.settings.index import IndexSettings as IndexSettings
from rfss_core.settings.observability import LogFormat as LogFormat
from rfss_core.settings.observability import LogLevel as LogLevel
from rfss_core.settings.observability import LogSettings as LogSettings
from rfss_core.settings.observability import ObservabilitySettings as ObservabilitySettings
from rfss_core.settings.privacy import CaseIds as CaseIds
from rfss_core.settings.privacy import PrivacySettings as PrivacySettings
from rfss_core.settings.promotion import PromotionPolicy as PromotionPolicy
from rfss_core.settings.promotion import PromotionSettings as PromotionSettings
from rfss_core.settings.quality import QualitySettings as QualitySettings
from rfss_core.settings.retrieval import FilterSettings as FilterSettings
from rfss_core.settings.retrieval import RetrievalSettings as RetrievalSettings
from rfss_core.settings.retrieval import Strategy as Strategy
from rfss_core.settings.segmentation import BASELINES as BASELINES
from rfss_core.settings.segmentation import SUPERVISED as SUPERVISED
from rfss_core.settings.segmentation import MergeRule as MergeRule
from rfss_core.settings.segmentation import SegmentationSettings as SegmentationSettings
from rfss_core.settings.segmentation import SegmenterName as SegmenterName
from rfss_core.settings.segmentation import SupportMaskMode as SupportMaskMode
from rfss_core.settings.selection import Objective as Objective
from rfss_core.settings.selection import SelectionSettings as SelectionSettings
from rfss_core.settings.student import ArchitectureName as ArchitectureName
from rfss_core.settings.student import StudentSettings as StudentSettings
from rfss_core.settings.training import SupervisedSettings as SupervisedSettings

PresetName = Literal["tiny", "fast", "paper", "best"]


class LabelSettings(SettingsModel):
    """Everything that one labelling run depends on: the parameters of flow ``label_dataset``."""

    images: str = Field(description="Folder or glob of images: NIfTI, DICOM series, PNG, TIFF, JPEG.")
    labels: str = Field(description="Folder or glob of label maps whose names pair with the images'.")
    workspace: str = Field(
        description="Folder or fsspec URL that holds everything of this labelling project. block://NAME/PATH: the "
        "place PATH below the store that the Prefect block NAME (of type RFSS store) describes, with its credentials."
    )
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
    promotion: PromotionSettings = Field(
        default_factory=PromotionSettings, description="When an accepted data set becomes the champion by itself."
    )
    selection: SelectionSettings = Field(
        default_factory=SelectionSettings, description="Which slices `rfss select` names to be labelled next."
    )
    alerts: AlertSettings = Field(
        default_factory=AlertSettings, description="When a run tells Prefect that quality drifts."
    )
    privacy: PrivacySettings = Field(
        default_factory=PrivacySettings, description="What cases and patients are called wherever they are named."
    )
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings, description="Where chunks run.")
    observability: ObservabilitySettings = Field(
        default_factory=ObservabilitySettings, description="Where the run's metrics can be read."
    )

    def scientific(self) -> dict[str, Any]:
        """Return the settings that can change a pseudo-label, as plain JSON types (part of the fingerprint)."""
        places = [
            "images",
            "labels",
            "workspace",
            "dataset",
            "quality",
            "promotion",
            "selection",
            "alerts",
            "privacy",
            "execution",
            "observability",
        ]
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


Settings = TypeVar("Settings", bound=SettingsModel)


@overload
def load_settings(overrides: dict[str, Any], config: Path | None = None) -> LabelSettings: ...


@overload
def load_settings(overrides: dict[str, Any], config: Path | None, model: type[Settings]) -> Settings: ...


def load_settings(
    overrides: dict[str, Any], config: Path | None = None, model: type[BaseModel] = LabelSettings
) -> BaseModel:
    """Merge a YAML file with overrides (which win) into validated settings.

    Args:
        overrides: nested dictionary of settings given explicitly; ``None`` values are ignored.
        config: YAML file with the fields of the model.
        model: of another flow.

    Returns:
        The validated settings.

    Raises:
        InputNotFoundError: the YAML file does not exist.
        SettingsError: a value is out of bounds, unknown or missing; the message lists each.
    """
    merged = {} if config is None else read_mapping(config, "configuration file", "check --config")
    _merge(merged, overrides)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(readable(error)) from error


def read_mapping(path: Path, what: str, advice: str = "check the path") -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty one.

    Args:
        path: the file.
        what: noun for messages.
        advice: for whoever named a file that does not exist.

    Raises:
        InputNotFoundError: the file does not exist.
        SettingsError: it is not YAML, or holds something else.
    """
    if not path.is_file():
        raise InputNotFoundError(f"{what} '{path}' does not exist; {advice}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what} '{path}' is not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise SettingsError(f"{what} '{path}' must hold a mapping of settings, not a {type(loaded).__name__}")
    return loaded


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

"""Settings of a study: one YAML file says which methods meet which splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.settings import PresetName, SegmenterName, Strategy, read_mapping, readable
from rfss_core.settings.base import SettingsModel

SHIPPED = Path(__file__).parent / "shipped"
"""The studies that come with RFSS, one YAML file each."""

Count = int | Literal["all"]


class MethodSettings(SettingsModel):
    """One method, or a grid of them: every list is a dimension."""

    name: str = Field(min_length=1, max_length=80, description="What the table calls it; values of lists are added.")
    segmenter: SegmenterName = Field("sam2-memory", description="What segments.")
    strategy: list[Strategy] = Field(["dino"], min_length=1, description="How support slices are chosen.")
    k: list[int] = Field([16], min_length=1, description="Support slices retrieved per query.")
    points: str | None = Field(None, description="Of sam2-points: points inside and outside each class, such as 2,2.")
    support_slices: list[Count] | None = Field(None, min_length=1, description="Default: the study's.")
    support_patients: list[Count] | None = Field(None, min_length=1, description="Default: the study's.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Further settings of `rfss label --config`: embedding, retrieval, ..."
    )

    @field_validator("strategy", "k", "support_slices", "support_patients", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, list | tuple) else [value]

    @field_validator("points", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("k", "support_slices", "support_patients")
    @classmethod
    def _positive(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and any(isinstance(one, int) and one < 1 for one in value):
            raise ValueError(f"numbers start at 1, got {value}")
        return value

    @field_validator("settings")
    @classmethod
    def _allowed(cls, value: dict[str, Any]) -> dict[str, Any]:
        allowed = ("embedding", "retrieval", "index", "segmentation", "training")
        if wrong := sorted(set(value) - set(allowed)):
            raise ValueError(f"'{wrong[0]}' cannot differ between methods; use one of {', '.join(allowed)}")
        return value


class Claim(SettingsModel):
    """A statement about two methods that the figures bear out, or do not."""

    text: str = Field(description="What is claimed, for people.")
    above: str = Field(description="The row that should have the higher mean Dice, as the table calls it.")
    below: str = Field(description="The other row.")
    by: float = Field(0.0, ge=-1, le=1, description="The mean paired difference must exceed this.")
    column: str = Field("mean", description="Class, or mean.")


class Published(SettingsModel):
    """Figures of others, which are shown beside and never mixed with one's own."""

    source: str = Field(description="Where they stand, and what made them.")
    dice: dict[str, dict[str, float]] = Field(description="Dice by method and class.")


class StudySettings(SettingsModel):
    """Everything that one study depends on: the parameters of flow ``study``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$", description="Name of the study and of its folder.")
    title: str = Field("", description="Heading of its table.")
    about: str = Field("", description="What it is for, and what to know when reading it.")
    images: str = Field("", description="Folder or glob of images.")
    labels: str = Field("", description="Folder or glob of their label maps.")
    preset: PresetName = Field("tiny", description="Named pair of models and settings.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Each draws its own test and support patients.")
    support_slices: Count = Field(50, description="Labelled slices that serve, drawn evenly over patients, or all.")
    support_patients: Count = Field(3, description="Patients that they come from, or all that are not tested.")
    test_patients: int = Field(3, ge=1, description="Patients to measure on.")
    methods: list[MethodSettings] = Field(min_length=1, description="What is compared.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings that all methods share, as in `rfss label --config`."
    )
    thirds: bool = Field(False, description="Also show the Dice of the structures' ends and middle apart.")
    curve: bool = Field(False, description="Also plot Dice over k, with intervals.")
    claims: list[Claim] = Field(default_factory=list, description="Statements to check.")
    published: Published | None = Field(None, description="Figures of a paper to show beside.")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or any(not 0 <= seed < 2**32 for seed in value):
            raise ValueError(f"seeds are distinct and not negative, got {value}")
        return value

    @field_validator("support_slices", "support_patients")
    @classmethod
    def _positive(cls, value: Count) -> Count:
        if isinstance(value, int) and value < 1:
            raise ValueError("numbers start at 1; write all for all")
        return value

    @field_validator("settings")
    @classmethod
    def _allowed(cls, value: dict[str, Any]) -> dict[str, Any]:
        elsewhere = ("images", "labels", "workspace", "preset", "k", "seed", "held_out", "dataset")
        if wrong := sorted(set(value) & set(elsewhere)):
            raise ValueError(f"'{wrong[0]}' has a place of its own in a study or means nothing there")
        return value

    @model_validator(mode="after")
    def _named_once(self) -> StudySettings:
        names = [method.name for method in self.methods]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two methods are called '{name}'; make it one grid, or rename one")
        return self


def shipped_studies() -> list[str]:
    """Return the names of the studies that come with RFSS."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_study(reference: str, overrides: dict[str, Any] | None = None) -> StudySettings:
    """Read a study.

    Args:
        reference: YAML file, or the name of a study that comes with RFSS.
        overrides: fields given elsewhere, which win; ``None`` values are ignored, ``settings`` are merged.

    Returns:
        The validated study.

    Raises:
        InputNotFoundError: neither a file nor a known name.
        SettingsError: no YAML mapping, or a field that is unknown, missing or out of bounds; each is named.
    """
    path = Path(reference)
    if not path.is_file():
        path = SHIPPED / f"{reference}.yaml"
        if reference not in shipped_studies():
            raise InputNotFoundError(
                f"study '{reference}' is no file, and does not come with RFSS; these do: "
                + ", ".join(shipped_studies())
            )
    content = read_mapping(path, "study")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    shared = {**(content.get("settings") or {}), **given.pop("settings", {})}
    merged = {"name": path.stem.lower().replace("_", "-"), **content, **given, "settings": shared}
    try:
        return StudySettings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(f"study '{reference}': {readable(error)}") from error

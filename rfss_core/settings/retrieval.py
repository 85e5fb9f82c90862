"""Settings of retrieval: strategy, and the filter that holds before the nearest slices are taken."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rfss_core.settings.base import SettingsModel

Strategy = Literal["dino", "random", "per-class", "diverse", "region"]
LabelSource = Literal["expert", "reviewed", "pseudo-label"]
Scalar = bool | int | float | str


class FilterSettings(SettingsModel):
    """Which support slices may serve a query: all conditions must hold."""

    equals: dict[str, list[Scalar]] = Field(
        default_factory=dict,
        description="Columns of the metadata and the values that a support slice may have there, for example "
        "{modality: [MR], body_part: [HEART, CHEST]}.",
    )
    match: list[str] = Field(
        default_factory=list,
        description="Columns in which a support slice must have the query's own value, for example [modality].",
    )
    contains: list[int | str] = Field(
        default_factory=list, description="Classes (values or names) that a support slice's label map must all hold."
    )
    lacks: list[int | str] = Field(
        default_factory=list, description="Classes (values or names) that a support slice's label map must not hold."
    )
    own_patient: Literal["never", "unlabelled"] = Field(
        "never",
        description="Which queries may be served by labelled slices of their own patient. A query with a label, which "
        "measures quality, never is.",
    )
    label_source: list[LabelSource] | None = Field(
        None, min_length=1, description="Who labelled the support slices: expert, reviewed, pseudo-label. Default: all."
    )

    @field_validator("equals", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, dict):
            return {name: one if isinstance(one, list | tuple) else [one] for name, one in value.items()}
        return value

    @field_validator("equals")
    @classmethod
    def _some(cls, value: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
        for name, wanted in value.items():
            if not wanted:
                raise ValueError(f"column '{name}' has no allowed value; name at least one, or leave the column out")
        return value

    # The job of a stage is a key of caches, and pydantic's own hash fails on dictionaries and lists.
    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def columns(self) -> list[str]:
        """Columns of the metadata that the filter looks at, each once, sorted."""
        return sorted({*self.equals, *self.match, *(["label_source"] if self.label_source else [])})


class RetrievalSettings(SettingsModel):
    """Which labelled slices serve a query."""

    strategy: Strategy = Field(
        "dino",
        description="dino: nearest embeddings. random: seeded draw, for comparison. per-class: k for each class, a "
        "share of them without it. diverse: maximal marginal relevance. region: nearest by patch tokens where the "
        "supports' masks are.",
    )
    support_slices: int | None = Field(
        None, ge=1, description="Use only so many support slices, drawn evenly over patients. Default: all."
    )
    filter: FilterSettings = Field(
        default_factory=FilterSettings, description="Which support slices may serve a query."
    )
    metadata: str | None = Field(
        None,
        description="CSV file with a column name (an image's, without extension) or patient, and further columns for "
        "the filter.",
    )
    candidates: int = Field(
        4, ge=1, le=64, description="diverse and region choose k among this many times k nearest slices."
    )
    diversity: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Of diverse: weight of unlikeness to what is chosen already against likeness to the query "
        "(1 - lambda of maximal marginal relevance). 0: the nearest.",
    )
    absent_share: float = Field(
        0.25, ge=0, le=1, description="Of per-class: share of a class's k supports that should lack it."
    )
    region_weight: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Of region: share of the patches' weight that lies on a support's mask, the same for each of its "
        "classes; the rest is even over the slice. 0: all patches count alike.",
    )

    @property
    def candidates_a_support(self) -> int:
        """How many neighbours the strategy asks an index for, in multiples of k."""
        return self.candidates if self.strategy in ("diverse", "region") else 1

    @property
    def needs_patches(self) -> bool:
        """Whether the strategy compares patch tokens."""
        return self.strategy == "region"

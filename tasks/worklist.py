"""What ``rfss select`` writes: ``select.json``, the worklist for annotators, a plot and thumbnails."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from rfss_core.settings import Objective
from rfss_core.store.files import Files


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChosenSlice(_Part):
    """One slice to label."""

    rank: int
    """From 1, the first to label."""
    case: str
    """Name of the case: relative path without extension."""
    slice: int
    """Number of the slice as RFSS counts them, from 0."""
    slice_id: str
    patient: str
    source: str
    """File of the case; the folder of a DICOM series. Empty with salted case ids: `rfss names` tells it."""
    source_axis: int
    """Axis of the source's array, from 0, that the slice is one position of."""
    source_slice: int
    """Position along it, from 0: what a viewer of the file shows."""
    distance: float | None
    """L2 distance to the nearest slice that was labelled or chosen before; None for the first of all."""
    covers: int
    """Unlabelled slices whose nearest labelled or chosen slice this is."""
    picture: str | None = None
    """Thumbnail, beside ``select.json``."""


class CaseToLabel(_Part):
    """One case with chosen slices."""

    case: str
    patient: str
    source: str
    rank: int
    """Of its first slice."""
    slices: list[int]
    covers: int


class CoveragePart(_Part):
    """L2 distances from unlabelled slices to the nearest labelled or chosen one."""

    chosen: int
    mean: float
    p95: float
    maximum: float


class DuplicatesPart(_Part):
    """Near-duplicates among all slices; the groups are in ``select-duplicates.csv``."""

    distance: float
    groups: int
    slices: int
    across_patients: int
    """Groups with more than one patient."""


class Selection(_Part):
    """What ``select.json`` holds."""

    n: int
    objective: Objective
    spread: bool
    per_patient: int | None
    seed: int
    preset: str
    model: str
    """Of the embeddings."""
    model_digest: str
    slices: int
    labelled_slices: int
    cases: int
    patients: int
    """Of unlabelled cases."""
    chosen: list[ChosenSlice]
    cases_to_label: list[CaseToLabel]
    """Cases by their first slice."""
    coverage: list[CoveragePart]
    random_coverage: list[CoveragePart]
    """Mean of ``random_draws`` random choices, spread evenly over patients."""
    random_draws: int
    duplicates: DuplicatesPart | None
    quarantined: int
    warnings: list[str] = Field(default_factory=list)


class Worklist:
    """Where a selection is written.

    Args:
        place: folder or fsspec URL; a name that ends in ``.json`` is that of ``select.json``, and names the others.
    """

    def __init__(self, place: str) -> None:
        folder, stem = place, "select"
        if place.lower().endswith(".json"):
            parent, slash, name = place.rpartition("/")
            folder, stem = (parent or slash or "."), name[: -len(".json")] or stem
        self.stem = stem
        self.files = Files(folder)

    def add_picture(self, name: str, png: bytes) -> str:
        """Write a thumbnail and return its path beside ``select.json``."""
        path = str(PurePosixPath(f"{self.stem}-slices") / name)
        self.files.write_bytes(path, png)
        return path

    def remove_pictures(self) -> None:
        """Remove the thumbnails of an earlier selection."""
        self.files.remove_tree(f"{self.stem}-slices")

    def write(self, selection: Selection, plot: bytes, duplicates: pd.DataFrame | None) -> None:
        """Write all but the thumbnails, ``select.json`` last."""
        self._table(f"{self.stem}.csv", pd.DataFrame(_rows(selection.chosen), columns=list(ChosenSlice.model_fields)))
        if duplicates is not None:
            self._table(f"{self.stem}-duplicates.csv", duplicates)
        self.files.write_bytes(f"{self.stem}-coverage.png", plot)
        self.files.write_bytes(f"{self.stem}.json", (selection.model_dump_json(indent=2) + "\n").encode())

    def _table(self, path: str, table: pd.DataFrame) -> None:
        self.files.write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def _rows(parts: Iterable[BaseModel]) -> list[dict[str, object]]:
    return [part.model_dump() for part in parts]

"""Manifest: the tables of cases, slices and quarantined inputs.

Built from the ingest records alone, sorted by case id, so that an ingest that was killed and resumed gives the same
bytes as an undisturbed one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from rfss_core.digest import digest_json
from rfss_core.imaging import Quarantined
from rfss_core.imaging.case import EXPERT_SOURCE, UNKNOWN
from rfss_core.store.files import Files
from rfss_core.store.records import Record
from rfss_core.store.stages import read_table, write_table

FOLDER = "manifest"

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
CASES = pa.schema(
    [
        ("case_id", _TEXT),
        ("name", _TEXT),
        ("patient", _TEXT),
        ("modality", _TEXT),
        ("kind", _TEXT),
        ("source_digest", _TEXT),
        ("pixel_digest", _TEXT),
        ("label_digest", _TEXT),
        ("n_slices", _INT),
        ("height", _INT),
        ("width", _INT),
        ("spacing_z", _FLOAT),
        ("spacing_y", _FLOAT),
        ("spacing_x", _FLOAT),
        ("suffix", _TEXT),
        ("classes", pa.list_(_INT)),
        ("labelled", pa.bool_()),
        ("body_part", _TEXT),
        ("label_source", _TEXT),
    ]
)
SLICES = pa.schema(
    [
        ("case_id", _TEXT),
        ("z", _INT),
        ("slice_id", _TEXT),
        ("classes", pa.list_(_INT)),
        ("foreground", _INT),
    ]
)
QUARANTINE = pa.schema([("name", _TEXT), ("reason", _TEXT), ("message", _TEXT), ("patient", _TEXT)])
_SCHEMAS = {"cases": CASES, "slices": SLICES, "quarantine": QUARANTINE}


@dataclass(frozen=True)
class CaseRow:
    """One case of the manifest."""

    case_id: str
    name: str
    """Relative path of the source without its extension."""
    patient: str
    modality: str
    kind: str
    """``nifti``, ``dicom`` or ``raster``."""
    source_digest: str
    """sha256 over the source's files."""
    pixel_digest: str
    """sha256 of the stored pixels: dtype, shape and content."""
    label_digest: str
    """sha256 of the stored label map; empty where there is none."""
    n_slices: int
    height: int
    width: int
    spacing_z: float
    """mm between slices."""
    spacing_y: float
    spacing_x: float
    suffix: str
    """Extension of label maps on the case's own grid: ``.nii.gz``, ``.png`` or ``.tif``."""
    classes: list[int]
    """Foreground values in the label map."""
    labelled: bool
    body_part: str = UNKNOWN
    label_source: str = ""
    """``expert``, ``reviewed``, or empty where there is no label map."""


def slice_id(case_id: str, z: int) -> str:
    """Return the id of one slice, ``<case_id>:<z, five digits>``."""
    return f"{case_id}:{z:05d}"


def slice_contents(label: npt.NDArray[np.uint8]) -> list[tuple[list[int], int]]:
    """Return (foreground classes present, foreground pixels) of each slice of a label map [Z, H, W]."""
    contents = []
    for plane in label:
        counts = np.bincount(plane.ravel(), minlength=256)
        contents.append(([int(value) for value in np.flatnonzero(counts) if value > 0], int(counts[1:].sum())))
    return contents


@dataclass(frozen=True)
class Manifest:
    """Tables of cases (sorted by case id), slices (by case id and z) and quarantined inputs (by name)."""

    cases: pd.DataFrame
    """Columns as the fields of :class:`CaseRow`."""
    slices: pd.DataFrame
    """case_id, z, slice_id, classes (present in the label map), foreground (pixels). Unlabelled slices: none, 0."""
    quarantine: pd.DataFrame
    """name, reason, message, patient."""

    @classmethod
    def from_records(
        cls, records: Iterable[Record], quarantined: Sequence[Quarantined] = (), case_ids: Iterable[str] | None = None
    ) -> Manifest:
        """Build the tables from ingest records.

        Args:
            records: records of stage ``ingest``.
            quarantined: inputs that never became a case; quarantined records are added to them.
            case_ids: take these cases only. Default: all that have a record.
        """
        wanted = None if case_ids is None else set(case_ids)
        kept = sorted((r for r in records if wanted is None or r.chunk in wanted), key=lambda record: record.chunk)
        refused = {(item.name, item.reason, item.message, item.patient or "") for item in quarantined}
        cases: list[dict[str, Any]] = []
        slices: list[dict[str, Any]] = []
        for record in kept:
            if record.status == "quarantined":
                detail = record.detail
                refused.add((detail["name"], record.reason or "", record.message, detail["patient"]))
                continue
            row = CaseRow(**record.detail["case"])
            if row.labelled and not row.label_source:
                # A record from before labels had sources.
                row = dataclasses.replace(row, label_source=EXPERT_SOURCE)
            cases.append(dataclasses.asdict(row))
            contents = record.detail["slices"] or [([], 0)] * row.n_slices
            for z, (classes, foreground) in enumerate(contents):
                slices.append(
                    {
                        "case_id": row.case_id,
                        "z": z,
                        "slice_id": slice_id(row.case_id, z),
                        "classes": classes,
                        "foreground": foreground,
                    }
                )
        refusals = [dict(zip(QUARANTINE.names, item, strict=True)) for item in sorted(refused)]
        return cls(
            pd.DataFrame(cases, columns=CASES.names),
            pd.DataFrame(slices, columns=SLICES.names),
            pd.DataFrame(refusals, columns=QUARANTINE.names),
        )

    @cached_property
    def digest(self) -> str:
        """sha256 over the cases' rows, which hold the digests of pixels and label maps.

        Slices follow from the label maps, and quarantined inputs change no pseudo-label: neither is part of it.
        """
        return digest_json(self.cases.to_dict(orient="records"))

    def rows(self) -> list[CaseRow]:
        """Return the cases as objects."""
        return [CaseRow(**{str(name): value for name, value in row.items()}) for row in self.cases.to_dict("records")]

    def write(self, files: Files) -> None:
        """Write the three tables, each atomically; the same manifest gives the same bytes."""
        for name, schema in _SCHEMAS.items():
            write_table(files, f"{FOLDER}/{name}.parquet", getattr(self, name), schema)

    @classmethod
    def read(cls, files: Files) -> Manifest:
        """Read the tables.

        Raises:
            StoreError: there is no manifest yet.
            CorruptStoreError: a table is damaged.
        """
        return cls(**{name: read_table(files, f"{FOLDER}/{name}.parquet") for name in _SCHEMAS})

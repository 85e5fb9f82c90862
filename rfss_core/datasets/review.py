"""The review folder: what a reviewer gets and gives back.

``worklist.csv`` says what to look at, first things first; ``images/`` and ``labels/`` hold images and pseudo-labels on
their sources' own grids, to be corrected in place; ``review.json`` is what the import needs. Names and colours of the
classes lie beside them for ITK-SNAP and 3D Slicer.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rfss_core.errors import InputError, InputNotFoundError, ReviewError

DOCUMENT, WORKLIST, README = "review.json", "worklist.csv", "README.txt"
COLUMNS = (
    "rank", "case", "patient", "image", "label", "decision", "reason", "predicted_dice", "lower_bound",
    "expected_gain", "reviewed", "reviewer", "note",
)  # fmt: skip
"""Of the worklist; the reviewer fills in the last three."""
_YES, _NO = {"yes", "y", "true", "1", "x", "ok", "done"}, {"no", "n", "false", "0"}

Mark = Literal["yes", "no", ""]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReviewCase(_Part):
    """One case to review."""

    rank: int
    case_id: str
    name: str
    patient: str
    image: str
    """Path of the image below the folder."""
    label: str
    """Path of the pseudo-label, to be corrected in place."""
    decision: str
    reason: str
    predicted_dice: float | None
    lower_bound: float | None
    expected_gain: float
    image_digest: str
    """Digest of the image's files."""
    pseudo_label_sha256: str
    """Of the pseudo-label's file in the data set."""
    label_digest: str
    """Of the label map's content, [Z, H, W]: tells a changed mask from one that a viewer merely saved again."""


class ReviewDocument(_Part):
    """What ``review.json`` holds."""

    format: Literal[1] = 1
    dataset: str
    dataset_digest: str
    fingerprint: str
    classes: dict[int, str]
    cases: list[ReviewCase] = Field(default_factory=list)


class WorklistRow(_Part):
    """What the reviewer wrote beside a case."""

    case: str
    reviewed: Mark
    """``yes``: count it even where no voxel changed. ``no``: never. Empty: where the mask changed."""
    reviewer: str
    note: str


def write_worklist(cases: Sequence[ReviewCase]) -> str:
    """Return ``worklist.csv`` of these cases."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for case in cases:
        figures = [case.predicted_dice, case.lower_bound, case.expected_gain]
        shown = ["" if value is None else f"{value:.4g}" for value in figures]
        words = [case.rank, case.name, case.patient, case.image, case.label, case.decision, case.reason]
        table.writerow([*words, *shown, "", "", ""])
    return text.getvalue()


def read_document(folder: Path) -> ReviewDocument:
    """Read ``review.json``.

    Raises:
        InputNotFoundError: the folder is no review folder.
        InputError: the file is damaged.
    """
    path = folder / DOCUMENT
    if not path.is_file():
        raise InputNotFoundError(f"'{folder}' holds no {DOCUMENT}; name a folder that `rfss review export` wrote")
    try:
        return ReviewDocument.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"'{path}' is damaged: {error.errors()[0]['msg']}; export the review again") from error


def read_worklist(folder: Path) -> dict[str, WorklistRow]:
    """Read what the reviewer wrote, by case name. Spreadsheets' semicolons, tabs and byte-order marks are understood.

    Raises:
        InputNotFoundError: ``worklist.csv`` is missing.
        ReviewError: columns are missing, a case is listed twice, or a mark is neither yes nor no.
    """
    path = folder / WORKLIST
    if not path.is_file():
        raise InputNotFoundError(f"'{path}' is missing; put it back, or export the review again")
    rows: dict[str, WorklistRow] = {}
    for number, row in _rows(path):
        name = (row.get("case") or "").strip()
        if name in rows:
            raise ReviewError(f"'{path}', line {number}: case '{name}' is listed twice; keep one line")
        word = (row.get("reviewed") or "").strip().lower()
        if word and word not in _YES | _NO:
            raise ReviewError(f"'{path}', line {number}: reviewed is '{word}'; write yes or no, or leave it empty")
        mark: Mark = "yes" if word in _YES else "no" if word else ""
        reviewer, note = ((row.get(key) or "").strip() for key in ("reviewer", "note"))
        rows[name] = WorklistRow(case=name, reviewed=mark, reviewer=reviewer, note=note)
    return rows


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReviewError(f"'{path}' cannot be read ({error}); save it as CSV in UTF-8") from error
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = [name for name in ("case", "reviewed") if name not in (reader.fieldnames or [])]
    if missing:
        raise ReviewError(f"'{path}' has no column {' and no column '.join(missing)}; keep the first line as it was")
    for row in reader:
        if any(isinstance(value, str) and value.strip() for value in row.values()):
            yield reader.line_num, row

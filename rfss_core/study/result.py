"""Result of one row of a study, as it is kept on disk."""

from __future__ import annotations

import platform
from importlib.metadata import version

from pydantic import BaseModel, ValidationError

from rfss_core.store.files import Files
from rfss_core.study.evaluation import Evaluation

ROWS = "rows"
"""Folder of the rows' files."""

_PACKAGES = ("rfss", "torch", "transformers", "monai", "numpy", "faiss-cpu", "scikit-learn", "zarr")


class RowResult(BaseModel):
    """One row: its figures, and all that is needed to make them again."""

    fingerprint: str
    """Digest of data, settings, splits, weights and code."""
    label: str
    seed: int
    command: str
    """Gives the same figures."""
    settings: str
    """YAML of settings that the command reads from a file (``--config``), or empty."""
    evaluation: Evaluation
    versions: dict[str, str]
    device: str
    finished: str
    """Time in UTC, ISO 8601."""

    @property
    def file(self) -> str:
        """Where the row is kept, relative to the output folder."""
        return row_file(self.fingerprint)


def row_file(fingerprint: str) -> str:
    """Return the name of the file of the row with this fingerprint."""
    return f"{ROWS}/{fingerprint[:16]}.json"


def read_row(files: Files, fingerprint: str) -> RowResult | None:
    """Return a finished row; None where there is none, or what is there is damaged or another row's."""
    name = row_file(fingerprint)
    if not files.exists(name):
        return None
    try:
        row = RowResult.model_validate_json(files.read_bytes(name))
    except ValidationError:
        return None
    return row if row.fingerprint == fingerprint else None


def write_row(files: Files, row: RowResult) -> None:
    """Write a finished row, whole or not at all."""
    if row.settings:
        files.write_bytes(row.file.replace(".json", ".yaml"), row.settings.encode())
    files.write_bytes(row.file, row.model_dump_json(indent=1).encode() + b"\n")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}

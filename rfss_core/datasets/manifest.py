"""Manifest of a pseudo-label data set: what is in it, to the byte.

The manifest is written twice, as ``manifest.json`` (what the digest is taken of) and as ``manifest.parquet`` (one row a
case, for query engines). Neither holds a time, so that the same pseudo-labels give the same bytes.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from rfss_core.digest import digest_bytes, digest_json
from rfss_core.errors import CorruptStoreError, InputError, InputNotFoundError
from rfss_core.quality.decision import Decision
from rfss_core.store.files import Files

FORMAT = 1
"""Version of the manifest's format."""
JSON_NAME, PARQUET_NAME = "manifest.json", "manifest.parquet"
DECIMALS = 6
"""Predictions are kept to so many decimals."""


@dataclass(frozen=True)
class DatasetEntry:
    """One pseudo-labelled case."""

    case: str
    """Case id."""
    name: str
    """The source's relative path without its extension."""
    patient: str
    label_path: str
    """The pseudo-label's path relative to the data set's folder, with ``/``."""
    sha256: str
    """Digest of the pseudo-label's file."""
    source_digest: str
    """Digest of the image that was labelled."""
    decision: Decision
    """What quality prediction says: accept, review or reject."""
    predicted_dice: float | None = None
    """Predicted Dice, 0 to 1; ``None`` where there is no prediction."""
    lower: float | None = None
    """Lower bound on Dice; ``None`` where there is no prediction."""
    slices: int = 0
    """Number of slices."""


@dataclass(frozen=True)
class DatasetManifest:
    """A data set as it was written or read."""

    name: str
    """Name of the data set."""
    digest: str
    """sha256 of the content: name, classes and entries; neither ``meta`` nor the folder changes it."""
    classes: dict[int, str]
    """Label value to name."""
    entries: tuple[DatasetEntry, ...]
    """Cases in order of their id."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping as JSON: fingerprint, preset, settings."""
    folder: str = ""
    """Folder or URL that the label paths are relative to."""

    @property
    def decisions(self) -> dict[str, int]:
        """Number of cases by decision."""
        counts = Counter(entry.decision for entry in self.entries)
        return {decision: counts[decision] for decision in ("accept", "review", "reject")}

    def select(self, *decisions: Decision) -> tuple[DatasetEntry, ...]:
        """Return the entries with one of these decisions.

        Raises:
            InputError: there is none.
        """
        chosen = tuple(entry for entry in self.entries if entry.decision in decisions)
        if not chosen:
            counts = ", ".join(f"{decision} {count}" for decision, count in self.decisions.items())
            raise InputError(
                f"data set '{self.name}' has no case decided {' or '.join(decisions)} (it has {counts}); "
                "choose other decisions, or review cases first"
            )
        return chosen


def write_dataset(
    folder: str | Path,
    name: str,
    entries: Sequence[DatasetEntry],
    classes: Mapping[int, str],
    meta: Mapping[str, Any] | None = None,
) -> DatasetManifest:
    """Write the manifest of pseudo-labels that already lie in a folder.

    Args:
        folder: folder or fsspec URL that holds the pseudo-labels and gets the manifest.
        name: name of the data set.
        entries: cases in any order; each file is read back and must match its digest.
        classes: label value to name, background excluded.
        meta: JSON values to keep beside the content. Put no times in it: the bytes are to be reproducible.

    Returns:
        The manifest. Its digest changes when and only when the name, the classes or an entry does.

    Raises:
        InputError: there is no entry, or two share a case or a path.
        UnsafePathError: a label path is absolute or leaves the folder.
        CorruptStoreError: a file is missing or is not what its digest says; all are named.
        StoreError: the manifest cannot be written.
    """
    if not entries:
        raise InputError(f"data set '{name}' has no case; nothing was labelled")
    ordered = tuple(sorted((_rounded(entry) for entry in entries), key=lambda entry: entry.case))
    for what in ("case", "label_path"):
        counts = Counter(getattr(entry, what) for entry in ordered)
        if twice := [value for value, count in counts.items() if count > 1]:
            raise InputError(f"data set '{name}' holds {what} {', '.join(map(repr, twice[:5]))} more than once")
    files = Files(folder)
    _verify(files, name, ordered)
    content = _content(name, dict(classes), ordered)
    manifest = DatasetManifest(
        name, digest_json(content), dict(sorted(classes.items())), ordered, dict(meta or {}), files.url
    )
    document = {"format": FORMAT, "digest": manifest.digest, "content": content, "meta": manifest.meta}
    buffer = io.BytesIO()
    dataset_table(manifest).to_parquet(buffer, engine="pyarrow", index=False, compression="zstd")
    files.write_bytes(PARQUET_NAME, buffer.getvalue())
    # The JSON file comes last: a reader who finds it finds all the rest.
    files.write_bytes(JSON_NAME, (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return manifest


def read_dataset(folder: str | Path, *, verify: bool = True) -> DatasetManifest:
    """Read a data set's manifest and check every file against it.

    Args:
        folder: folder or fsspec URL that holds ``manifest.json``.
        verify: read every pseudo-label and compare its digest.

    Returns:
        The manifest.

    Raises:
        InputNotFoundError: there is no manifest.
        CorruptStoreError: the manifest was altered, or files changed or vanished; they are named.
    """
    files = Files(folder)
    if not files.exists(JSON_NAME):
        raise InputNotFoundError(
            f"no data set at '{files.url}': {JSON_NAME} is missing; name the folder that `rfss label` published"
        )
    try:
        document = json.loads(files.read_bytes(JSON_NAME))
        content = document["content"]
        entries = tuple(DatasetEntry(**row) for row in content["cases"])
        classes = {int(value): str(label) for value, label in content["classes"].items()}
        manifest = DatasetManifest(content["name"], document["digest"], classes, entries, document["meta"], files.url)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptStoreError(
            f"{JSON_NAME} at '{files.url}' is not a manifest of format {FORMAT} ({error}); restore it or label again"
        ) from error
    if digest_json(content) != manifest.digest:
        raise CorruptStoreError(f"{JSON_NAME} at '{files.url}' was altered: its digest does not match its content")
    if verify:
        verify_labels(manifest)
    return manifest


def verify_labels(manifest: DatasetManifest) -> None:
    """Hash every pseudo-label again.

    Raises:
        CorruptStoreError: files changed or vanished; they are named.
    """
    _verify(Files(manifest.folder), manifest.name, manifest.entries)


def dataset_table(manifest: DatasetManifest) -> pd.DataFrame:
    """Return the entries as a table, one row a case, with the columns of :class:`DatasetEntry`."""
    columns = [column.name for column in fields(DatasetEntry)]
    table = pd.DataFrame([asdict(entry) for entry in manifest.entries], columns=columns)
    numbers = dict.fromkeys(("predicted_dice", "lower"), "float64")
    return table.astype({**dict.fromkeys(columns, "string"), **numbers, "slices": "int64"})


def _content(name: str, classes: dict[int, str], entries: Sequence[DatasetEntry]) -> dict[str, Any]:
    return {
        "name": name,
        "classes": {str(value): label for value, label in sorted(classes.items())},
        "cases": [asdict(entry) for entry in entries],
    }


def _rounded(entry: DatasetEntry) -> DatasetEntry:
    values = asdict(entry)
    for key in ("predicted_dice", "lower"):
        if values[key] is not None:
            values[key] = round(float(values[key]), DECIMALS)
    return DatasetEntry(**values)


def _verify(files: Files, name: str, entries: Sequence[DatasetEntry]) -> None:
    """Compare each file with its digest, one file in memory at a time."""
    missing, changed = [], []
    for entry in entries:
        if not files.exists(entry.label_path):
            missing.append(entry.label_path)
        elif digest_bytes(files.read_bytes(entry.label_path)) != entry.sha256:
            changed.append(entry.label_path)
    if missing or changed:
        parts = [f"{what}: {_some(paths)}" for what, paths in (("missing", missing), ("changed", changed)) if paths]
        raise CorruptStoreError(
            f"data set '{name}' at '{files.url}' is not what was registered; {'; '.join(parts)}. "
            "Restore these files or label again"
        )


def _some(paths: Sequence[str], most: int = 20) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more

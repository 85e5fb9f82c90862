"""Exports of a pseudo-label data set."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rfss_core.datasets.manifest import DatasetEntry, DatasetManifest, dataset_table, read_dataset, write_dataset
from rfss_core.digest import digest_bytes
from rfss_core.errors import InputError
from rfss_core.quality.decision import Decision
from rfss_core.store.files import Files


@dataclass(frozen=True)
class LabelEdit:
    """Another content for the exported label files."""

    encode: Callable[[DatasetEntry], bytes]
    """Returns the file of an entry."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Label values that the edit adds, with their names."""


def export_nifti(
    source: str | Path,
    target: str | Path,
    decisions: Sequence[Decision] = ("accept", "review"),
    edit: LabelEdit | None = None,
) -> DatasetManifest:
    """Copy a data set's pseudo-labels to a plain tree, byte for byte or edited, under their sources' own names.

    The tree pairs with the images by name, as ``rfss label --labels`` expects it. Labels of raster images stay PNG
    files: as NIfTI they would no longer pair with their images. ``manifest.json``, ``manifest.parquet`` and
    ``cases.csv`` lie beside the labels.

    Args:
        source: folder or URL of the data set.
        target: folder or URL to fill; it must not hold a data set yet.
        decisions: which cases to export; rejected ones are left out unless asked for.
        edit: what to write instead of the label files, for example with uncertain voxels ignored.

    Returns:
        The manifest of what was exported, with ``exported_from`` (the source's digest) in its ``meta``.

    Raises:
        InputError: no case has one of these decisions, or the target is taken.
        InputNotFoundError: there is no data set at the source.
        CorruptStoreError: the source's files are not what was registered.
    """
    manifest = read_dataset(source)
    chosen = manifest.select(*decisions)
    into, origin = Files(target), Files(source)
    if into.exists("manifest.json"):
        raise InputError(f"'{into.url}' already holds a data set; export to another folder")
    written = []
    for entry in chosen:
        data = edit.encode(entry) if edit is not None else origin.read_bytes(entry.label_path)
        into.write_bytes(entry.label_path, data)
        written.append(entry if edit is None else replace(entry, sha256=digest_bytes(data)))
    classes = {**manifest.classes, **(edit.classes if edit is not None else {})}
    meta = {**manifest.meta, "exported_from": manifest.digest}
    exported = write_dataset(target, manifest.name, written, classes, meta)
    text = io.StringIO(newline="")
    table = dataset_table(exported)
    rows = csv.writer(text)
    rows.writerow(table.columns)
    rows.writerows(table.itertuples(index=False))
    into.write_bytes("cases.csv", text.getvalue().encode())
    return exported

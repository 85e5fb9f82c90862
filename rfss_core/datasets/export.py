"""Exports of a pseudo-label data set."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rfss_core.datasets.manifest import DatasetManifest, dataset_table, read_dataset, write_dataset
from rfss_core.errors import InputError
from rfss_core.quality.decision import Decision
from rfss_core.store.files import Files


def export_nifti(
    source: str | Path, target: str | Path, decisions: Sequence[Decision] = ("accept", "review")
) -> DatasetManifest:
    """Copy a data set's pseudo-labels to a plain tree, byte for byte, under their sources' own names.

    The tree pairs with the images by name, as ``rfss label --labels`` expects it. Labels of raster images stay PNG
    files: as NIfTI they would no longer pair with their images. ``manifest.json``, ``manifest.parquet`` and
    ``cases.csv`` lie beside the labels.

    Args:
        source: folder or URL of the data set.
        target: folder or URL to fill; it must not hold a data set yet.
        decisions: which cases to export; rejected ones are left out unless asked for.

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
    for entry in chosen:
        into.write_bytes(entry.label_path, origin.read_bytes(entry.label_path))
    exported = write_dataset(
        target, manifest.name, chosen, manifest.classes, {**manifest.meta, "exported_from": manifest.digest}
    )
    text = io.StringIO(newline="")
    table = dataset_table(exported)
    rows = csv.writer(text)
    rows.writerow(table.columns)
    rows.writerows(table.itertuples(index=False))
    into.write_bytes("cases.csv", text.getvalue().encode())
    return exported

"""Pseudo-label data sets: manifest, export, provenance."""

from rfss_core.datasets.manifest import DatasetEntry, DatasetManifest, dataset_table, read_dataset, write_dataset
from rfss_core.datasets.provenance import PROVENANCE_SCHEMA, provenance_table

__all__ = [
    "PROVENANCE_SCHEMA",
    "DatasetEntry",
    "DatasetManifest",
    "dataset_table",
    "provenance_table",
    "read_dataset",
    "write_dataset",
]

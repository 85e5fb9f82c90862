"""Pseudo-label data sets: manifest, loading, export, provenance."""

from rfss_core.datasets.loading import check_classes, load, load_many
from rfss_core.datasets.manifest import DatasetEntry, DatasetManifest, dataset_table, read_dataset, write_dataset
from rfss_core.datasets.provenance import PROVENANCE_SCHEMA, provenance_table
from rfss_core.datasets.pseudo_label_case import PseudoLabelCase
from rfss_core.datasets.pseudo_label_set import PseudoLabelSet

__all__ = [
    "PROVENANCE_SCHEMA",
    "DatasetEntry",
    "DatasetManifest",
    "PseudoLabelCase",
    "PseudoLabelSet",
    "check_classes",
    "dataset_table",
    "load",
    "load_many",
    "provenance_table",
    "read_dataset",
    "write_dataset",
]

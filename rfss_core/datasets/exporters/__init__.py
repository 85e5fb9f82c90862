"""Exports: a data set in the layouts that other tools read, one format a file."""

from __future__ import annotations

from collections.abc import Callable

from rfss_core.datasets.exporters.bids import BidsExporter
from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.decathlon import DecathlonExporter
from rfss_core.datasets.exporters.dicom_seg import DicomSegExporter
from rfss_core.datasets.exporters.export import ExportReport, LeftOut, export_cases
from rfss_core.datasets.exporters.exporter import CaseFiles, Exporter, WrittenCase
from rfss_core.datasets.exporters.folder import MANIFEST, read_manifest, verify_export
from rfss_core.datasets.exporters.nifti_tree import NiftiTreeExporter
from rfss_core.datasets.exporters.nnunet import NnunetExporter
from rfss_core.datasets.exporters.ome_zarr import OmeZarrExporter
from rfss_core.settings import ExportFormat, ExportSettings

EXPORTERS: dict[ExportFormat, Callable[[ExportSettings], Exporter]] = {
    "nifti": NiftiTreeExporter,
    "nnunet": NnunetExporter,
    "monai": DecathlonExporter,
    "bids": BidsExporter,
    "dicom-seg": DicomSegExporter,
    "ome-zarr": OmeZarrExporter,
}
"""Format to what writes it: the one list of formats."""

__all__ = [
    "EXPORTERS",
    "MANIFEST",
    "CaseFiles",
    "ExportCase",
    "ExportReport",
    "ExportSet",
    "Exporter",
    "LeftOut",
    "WrittenCase",
    "export_cases",
    "read_manifest",
    "verify_export",
]

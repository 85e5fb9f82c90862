"""Medical images in and out: NIfTI, DICOM series, PNG, JPEG and TIFF; see docs/architecture.md."""

from __future__ import annotations

from rfss_core.imaging.case import CaseSource, Discovery, PrivateName, Quarantined
from rfss_core.imaging.discover import discover
from rfss_core.imaging.grid import NiftiGeometry, SourceGrid
from rfss_core.imaging.hiding import hiding
from rfss_core.imaging.intensity import IntensityWindow, estimate_window, normalise
from rfss_core.imaging.label import read_label, write_label
from rfss_core.imaging.pseudonyms import Pseudonyms, open_pseudonyms
from rfss_core.imaging.volume import Volume, read_image, source_digest, write_image

__all__ = [
    "CaseSource",
    "Discovery",
    "IntensityWindow",
    "NiftiGeometry",
    "PrivateName",
    "Pseudonyms",
    "Quarantined",
    "SourceGrid",
    "Volume",
    "discover",
    "estimate_window",
    "hiding",
    "normalise",
    "open_pseudonyms",
    "read_image",
    "read_label",
    "source_digest",
    "write_image",
    "write_label",
]

"""Plain tree: label maps under their sources' own names, on their sources' own grids."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.exporter import CaseFiles, WrittenCase
from rfss_core.datasets.manifest import write_dataset
from rfss_core.imaging import write_label
from rfss_core.imaging.output import write_atomically
from rfss_core.settings import ExportSettings

_COLUMNS = ("case", "name", "patient", "label", "label_source", "decision", "predicted_dice", "lower", "slices")


class NiftiTreeExporter:
    """Writes label maps that pair with the images by name, as ``rfss label --labels`` expects them.

    Label maps of raster images stay PNG or TIFF files: as NIfTI they would no longer pair with their images.
    """

    def __init__(self, settings: ExportSettings) -> None:
        del settings

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return ``out``."""
        del content
        return out

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Accept every set."""
        del content
        return {}

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write the label map; without ignored voxels a pseudo-label has the bytes of the data set's own file."""
        path = f"{case.name}{case.grid.suffix}"
        write_label(case.read_labels(), case.grid, folder / path)
        return CaseFiles((path,), {"label": path})

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write ``cases.csv``, and of the pseudo-labels a data set's manifest, which ``read_dataset`` reads."""
        entries = [
            replace(each.case.entry, label_path=each.detail["label"], sha256=each.files[each.detail["label"]])
            for each in written
            if each.case.entry is not None
        ]
        if entries:
            meta = {**content.meta, "exported_from": content.digest}
            write_dataset(folder, content.name, entries, content.classes, meta)
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for each in written:
            case = each.case
            figures = ["" if value is None else f"{value:.6g}" for value in (case.predicted_dice, case.lower)]
            words = [case.id, case.name, case.patient, each.detail["label"], case.label_source, case.decision or ""]
            rows.writerow([*words, *figures, case.stored.n_slices])
        write_atomically(folder / "cases.csv", text.getvalue().encode())

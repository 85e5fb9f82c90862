"""BIDS derivatives: discrete segmentations, ``sub-<label>/anat/..._desc-<label>_dseg.nii.gz``.

https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html#segmentations
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfss_core import __version__
from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.exporter import CaseFiles, WrittenCase
from rfss_core.datasets.exporters.folder import MANIFEST
from rfss_core.datasets.exporters.grids import as_nifti
from rfss_core.datasets.viewers import class_palette
from rfss_core.imaging import write_label
from rfss_core.imaging.output import write_atomically
from rfss_core.settings import ExportSettings

BIDS_VERSION = "1.10.0"
_KEPT = ("ses", "acq", "ce", "rec", "run")
"""Entities of a source's own BIDS name that are kept, in the order of the specification."""
_ENTITY = re.compile(r"(sub|ses|acq|ce|rec|run)-([A-Za-z0-9]+)")
_DESCRIPTION = {"pseudo-label": "rfss", "expert": "expert", "reviewed": "reviewed"}


class BidsExporter:
    """Writes label maps, each with its JSON, and one look-up table of classes."""

    def __init__(self, settings: ExportSettings) -> None:
        del settings
        self._names: dict[str, dict[str, str]] = {}
        self._classes: dict[int, str] = {}
        self._ignore: int | None = None

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return ``out``."""
        del content
        return out

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Derive the entities of each case's name; cases that would share a name get a part of their digest."""
        self._classes, self._ignore = content.classes, content.ignore
        found = {case.id: entities(case) for case in content.cases}
        counts = Counter(tuple(sorted(each.items())) for each in found.values())
        for case_id, each in found.items():
            if counts[tuple(sorted(each.items()))] > 1:
                each["acq"] = each.get("acq", "") + hashlib.sha256(case_id.encode()).hexdigest()[:8]
        self._names = found
        return {"bids_version": BIDS_VERSION}

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write the label map, rasters as NIfTI, and what it is."""
        found = self._names[case.id]
        grid = as_nifti(case.grid)
        parts = [f"sub-{found['sub']}", *(f"{key}-{found[key]}" for key in _KEPT if key in found)]
        place = "/".join([part for part in parts[:2] if part.startswith(("sub-", "ses-"))] + ["anat"])
        base = f"{place}/{'_'.join(parts)}_desc-{_DESCRIPTION[case.label_source]}_dseg"
        write_label(case.read_labels(), grid, folder / f"{base}.nii.gz")
        about = {
            "Manual": case.label_source != "pseudo-label",
            "Description": _SENTENCE[case.label_source],
            "Case": case.name,
            "Decision": case.decision,
            "PredictedDice": case.predicted_dice,
            "PredictedDiceLowerBound": case.lower,
            "ImageDigest": case.stored.source_digest,
        }
        about = {key: value for key, value in about.items() if value is not None}
        write_atomically(folder / f"{base}.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
        return CaseFiles((f"{base}.nii.gz", f"{base}.json"), {"label": f"{base}.nii.gz"})

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write ``dataset_description.json``, the tables of classes and what the validator is to pass over."""
        description = {
            "Name": f"Label maps of {content.name}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "RFSS",
                    "Version": __version__,
                    "Description": "Retrieval-augmented few-shot segmentation with DINOv2, FAISS and SAM 2",
                }
            ],
        }
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / "dataset_description.json", text.encode())
        write_atomically(folder / "README", _README.format(name=content.name).encode())
        table = self._table().encode()
        # By the inheritance principle one table a description serves all label maps below.
        for source in sorted({each.case.label_source for each in written}):
            write_atomically(folder / f"desc-{_DESCRIPTION[source]}_dseg.tsv", table)
        write_atomically(folder / ".bidsignore", f"{MANIFEST}\n".encode())

    def _table(self) -> str:
        palette = class_palette(self._classes)
        text = io.StringIO(newline="")
        rows = csv.writer(text, delimiter="\t", lineterminator="\n")
        rows.writerow(("index", "name", "color"))
        rows.writerow((0, "background", "#000000"))
        for value, name in sorted(self._classes.items()):
            colour = "#{:02x}{:02x}{:02x}".format(*palette[value])
            rows.writerow((value, " ".join(name.split()) or str(value), colour))
        return text.getvalue()


def entities(case: ExportCase) -> dict[str, str]:
    """Return the BIDS entities of a case, letters and digits alone.

    A source that is named as BIDS wants it keeps its own (``sub-01_ses-2_T1w``). Else ``sub`` is the patient and
    ``acq`` what else the name says (``patient001_frame01``: ``sub-patient001_acq-frame01``).
    """
    base = case.name.rsplit("/", 1)[-1]
    own = dict(_ENTITY.findall(base)) if base.startswith("sub-") else {}
    if "sub" in own:
        return own
    patient = _plain(case.patient)
    rest = _plain(case.name.replace(case.patient, " ")) if case.patient else _plain(case.name)
    found = {"sub": patient or _plain(case.id) or "unknown"}
    if rest and rest != found["sub"]:
        found["acq"] = rest[:64]
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "", text.removeprefix("sub-"))


_SENTENCE = {
    "pseudo-label": "Pseudo-label: made by RFSS, seen by no reader",
    "expert": "Label map of an expert",
    "reviewed": "Pseudo-label of RFSS that a reviewer looked at and, where needed, corrected",
}
_README = """Label maps of the data set '{name}', exported by RFSS.

desc-rfss: pseudo-labels. desc-expert: label maps of experts. desc-reviewed: corrected pseudo-labels.
Each desc-<label>_dseg.tsv names the classes; rfss-export.json holds the sha256 of every file.
"""

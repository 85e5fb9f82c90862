"""Cases: one volume or image of one patient, and what discovery says about the files it saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rfss_core.imaging.names import case_id

Kind = Literal["nifti", "dicom", "raster"]
UNKNOWN = "unknown"
"""Modality or body part that the source does not tell."""
EXPERT_SOURCE, REVIEWED_SOURCE = "expert", "reviewed"
"""Where a label map comes from: an expert's own, or a pseudo-label that somebody looked at and corrected."""


@dataclass(frozen=True)
class CaseSource:
    """Where one case comes from. Picklable; opens nothing."""

    case_id: str
    """Safe ASCII (letters, digits, ``.``, ``_``, ``-``), unique, depends on ``name`` alone."""
    name: str
    """Relative path without extension, with ``/`` between folders: names the output."""
    patient: str
    modality: str
    """DICOM Modality (``MR``, ``CT``, ...), else ``unknown``."""
    kind: Kind
    image: Path | tuple[Path, ...]
    """The file, or the files of a DICOM series."""
    label: Path | None
    """The expert's label map, or None for a case to label."""
    body_part: str = UNKNOWN
    """DICOM BodyPartExamined (``HEART``, ``CHEST``, ...), else ``unknown``."""
    label_source: str = EXPERT_SOURCE
    """Where ``label`` comes from: ``expert``, or ``reviewed`` for a corrected pseudo-label."""
    hidden: tuple[str, ...] = ()
    """Name and patient that ``case_id``, ``name`` and ``patient`` are pseudonyms of; empty with plain names."""


@dataclass(frozen=True)
class Quarantined:
    """A file or case that was set aside."""

    name: str
    """The case's name; for a file that became no case, its relative path with extension."""
    reason: str
    """Stable slug such as ``unsafe_path``."""
    message: str
    """One sentence: what is wrong and what to do."""
    patient: str | None = None

    @property
    def case_id(self) -> str:
        """What logs call it: the id of the case, or the one that a case of this name would have."""
        return case_id(self.name)


@dataclass(frozen=True)
class PrivateName:
    """What a pseudonym stands for; see :mod:`rfss_core.imaging.pseudonyms`."""

    id: str
    """Of a case, or of a file that became none."""
    name: str
    patient: str
    image: str = ""
    """File of the case; the folder of a DICOM series."""
    label: str = ""
    message: str = ""
    """Why the file was set aside, with its names."""


@dataclass(frozen=True)
class Discovery:
    """What :func:`rfss_core.imaging.discover` found: every file is in exactly one of the three lists."""

    cases: list[CaseSource]
    """Sorted by name."""
    quarantined: list[Quarantined]
    """Sorted by name."""
    ignored: list[str]
    """Relative paths of hidden files and of files that are no images (``labels:`` before those of the labels)."""
    private: tuple[PrivateName, ...] = ()
    """What the pseudonyms stand for; empty with plain names."""

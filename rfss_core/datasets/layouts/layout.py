"""Layout: what an adapter of a public data set tells about a folder, without reading a pixel."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

Frames = Literal["annotated", "all"]
Listing = Mapping[str, Path]
"""Relative path, with ``/`` between folders, to file."""
WHOLE_NAME = "^.+$"
"""Pattern of layouts in which every file is its own patient."""


@dataclass(frozen=True)
class Part:
    """A file of a data set, or one frame of a 4-D one."""

    path: Path
    frame: int | None = None
    """Index on the fourth axis, from 0; None: the whole file."""


@dataclass(frozen=True)
class LayoutCase:
    """One image of a data set, and where its mask is."""

    name: str
    """Of the files that are written, without extension; no folder in it."""
    patient: str
    image: Part
    masks: tuple[Part, ...] = ()
    """None: unlabelled. Several: their union."""
    split: str = ""
    """The publisher's own: ``training``, ``testing``."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What else the publisher tells: phase, vendor, diagnosis."""


@dataclass(frozen=True)
class Plan:
    """What a folder holds."""

    cases: list[LayoutCase]
    problems: dict[str, str] = field(default_factory=dict)
    """File or case to one sentence: a mask that is missing, a mask without image. Such cases stand in ``cases`` too,
    unlabelled, where they can."""


class Layout(ABC):
    """A data set as its publisher ships it. One subclass a file, one instance in ``LAYOUTS``."""

    name: ClassVar[str]
    """What the command line calls it."""
    title: ClassVar[str]
    classes: ClassVar[dict[int, str]]
    """Values in the label maps that are written, consecutive from 1, to names."""
    values: ClassVar[dict[int, int]]
    """Values in the publisher's masks, all that may occur, to values that are written."""
    patient_pattern: ClassVar[str]
    """Finds in :attr:`LayoutCase.name` what :attr:`LayoutCase.patient` holds."""
    modality: ClassVar[str]
    """DICOM's term, as ``--filter modality=MR`` names it."""
    body_part: ClassVar[str]
    """DICOM's term."""
    window: ClassVar[tuple[float, float] | None] = None
    """Of CT: centre and width in Hounsfield units."""
    empty_masks: ClassVar[bool] = False
    """Whether a mask without foreground is the publisher's word for: nothing there."""
    citation: ClassVar[str]
    terms: ClassVar[str]
    """Licence, or who grants access."""
    certain: ClassVar[tuple[re.Pattern[str], ...]] = ()
    """Relative paths that no other layout has."""
    caution: ClassVar[str] = ""
    """What a user of held-out figures must know, one sentence."""

    def recognised(self, listing: Listing) -> int:
        """Return how many files of a folder are certainly of this layout."""
        return sum(any(pattern.fullmatch(name) for pattern in self.certain) for name in listing)

    @abstractmethod
    def plan(self, listing: Listing, frames: Frames, /) -> Plan:
        """Return the cases of a folder.

        Raises:
            LayoutError: the folder cannot be understood at all.
        """


def identity(classes: Mapping[int, str]) -> dict[int, int]:
    """Return the values of masks that hold the classes already."""
    return {value: value for value in (0, *classes)}


def missing_masks(cases: Iterable[LayoutCase], groups: Iterable[str]) -> dict[str, str]:
    """Name the images without a mask in groups where others have one: there, a mask was lost.

    Args:
        cases: of one data set.
        groups: of each case, such as its split; a group without any mask is the publisher's unlabelled part.
    """
    pairs = list(zip(cases, groups, strict=True))
    labelled = Counter(group for case, group in pairs if case.masks)
    return {
        case.name: f"{case.image.path.name}: has no mask, but {labelled[group]} others of '{group or '.'}' have one"
        for case, group in pairs
        if not case.masks and labelled[group]
    }


def repeated_names(cases: Iterable[LayoutCase]) -> dict[str, str]:
    """Name the cases that would be written to one file."""
    places: dict[str, list[str]] = {}
    for case in cases:
        places.setdefault(case.name, []).append(str(case.image.path))
    return {name: f"{' and '.join(found)} are both '{name}'" for name, found in places.items() if len(found) > 1}


def folder_of(name: str, levels: int = 1) -> str:
    """Return the folder so many levels above a file, relative; nothing at the top."""
    return "/".join(name.split("/")[: -1 - levels]) if levels else name.rpartition("/")[0]

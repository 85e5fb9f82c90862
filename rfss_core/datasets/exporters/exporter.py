"""What an export format is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rfss_core.datasets.exporters.case import ExportCase, ExportSet


@dataclass(frozen=True)
class CaseFiles:
    """What an exporter wrote of one case."""

    paths: tuple[str, ...]
    """Files and folders, relative to the export's folder, with ``/``."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON of the format's own, for example which file is the image."""


@dataclass(frozen=True)
class WrittenCase:
    """A case of the export, on disk."""

    case: ExportCase
    files: Mapping[str, str]
    """Relative path to sha256."""
    detail: Mapping[str, Any]
    """As in :class:`CaseFiles`."""


class Exporter(Protocol):
    """One export format. Made once an export; its files appear in a folder that nobody reads yet."""

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return the folder that the export becomes, ``out`` or a folder in it.

        Raises:
            InputError: the place is taken in a way that this format knows of.
        """
        ...

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Look at all cases, without their voxels, before the first is written.

        Returns:
            Plain JSON of what is particular to this export, for example renumbered classes: kept in the export's
            manifest and part of its fingerprint.

        Raises:
            InputError: these cases cannot be one export of this format.
        """
        ...

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write one case below ``folder``, over what an interrupted try left there.

        Raises:
            CaseError: this case has no place in the format; it is left out, and the export goes on.
        """
        ...

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write what describes all cases together.

        Args:
            written: by case id, what earlier tries wrote included.
            content: the set.
            folder: the export's folder.
        """
        ...

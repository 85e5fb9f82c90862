"""Origin of a data set: the workspace that it was published in, and the files that its images came from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.datasets.manifest import DatasetEntry, DatasetManifest
from rfss_core.digest import digest_array
from rfss_core.errors import CorruptStoreError, InputError, StoreError
from rfss_core.imaging import CaseSource, Pseudonyms, discover, open_pseudonyms, source_digest
from rfss_core.settings import ImagingSettings, PrivacySettings
from rfss_core.store import Workspace
from rfss_core.store.files import Files
from rfss_core.store.images import StoredCase
from rfss_core.store.stages import StageStore

LATEST = "datasets/latest"
"""File that names the folder of the latest data set, below the workspace."""
PUBLISH_STAGE = "publish"
"""Stage whose chunks list the label files that they wrote."""
SEGMENT_STAGE = "segment"
"""Stage whose chunks hold each case's label map and uncertainty."""
UNCERTAINTY = "uncertainty"
"""Array of stage segment: uint8 [Z, H, W], see :func:`rfss_core.quality.evidence.uncertainty_map`."""
ORIGIN = "origin.json"
"""File beside the manifest that says where the images were; a hint, not part of the digest."""


@dataclass(frozen=True)
class UncertaintyMap:
    """Where a case's uncertainty is stored."""

    store: StageStore
    chunk: str
    case: str

    @property
    def path(self) -> str:
        """Path of the array, below the workspace."""
        return f"{self.store.folder(self.chunk)}/{self.case}/{UNCERTAINTY}"

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Return slices of the map, uint8 [n, H, W]."""
        return np.asarray(
            self.store.read_array(self.chunk, f"{self.case}/{UNCERTAINTY}", slice(start, stop)), dtype=np.uint8
        )

    def is_sound(self, expected: str) -> bool:
        """Read the whole map and compare its digest."""
        try:
            return digest_array(self.read()) == expected
        except StoreError:
            return False


class Origin:
    """Where images and uncertainties of a data set come from.

    Pickles as its addresses. Opened once in each process: clients of object stores do not survive a fork.

    Args:
        manifest: the data set's.
        images: folder or glob of the source images; default: what :data:`ORIGIN` says, if it is there still.
    """

    def __init__(self, manifest: DatasetManifest, images: str | None = None) -> None:
        self.manifest = manifest
        self.images = images

    def __getstate__(self) -> dict[str, Any]:
        # What was found by listing travels; what is open does not.
        kept = ("manifest", "images", "_chunks", "sources", "image_pattern")
        return {name: value for name, value in self.__dict__.items() if name in kept}

    @cached_property
    def settings(self) -> ImagingSettings:
        """How images became slices; empty label maps are kept."""
        known = dict(self.manifest.meta.get("settings", {}).get("imaging", {}))
        return ImagingSettings.model_validate({**known, "empty_labels": "keep"})

    @cached_property
    def pseudonyms(self) -> Pseudonyms | None:
        """Those of the data set's cases, by the salt of whoever reads it; None with plain names.

        Raises:
            InputNotFoundError: the salt is not here.
            SettingsError: it is another one.
        """
        said = self.manifest.meta.get("privacy")
        if not said:
            return None
        settings = PrivacySettings(case_ids="salted")
        return open_pseudonyms(settings, create=False, expected=str(said.get("salt", "")))

    @cached_property
    def workspace(self) -> Workspace | None:
        """The workspace that holds the data set's folder; None where the folder lies elsewhere, as a copy does."""
        parts = self.manifest.folder.rstrip("/").rsplit("/", 2)
        if len(parts) != 3 or parts[1] != "datasets" or not parts[0]:
            return None
        try:
            return Workspace.open(parts[0], create=False)
        except (InputError, StoreError):
            return None

    @cached_property
    def image_pattern(self) -> str | None:
        """Folder or glob of the source images; None where it is not known or not there."""
        if self.images is not None:
            return self.images
        files = Files(self.manifest.folder)
        if not files.exists(ORIGIN):
            return None
        pattern = str(json.loads(files.read_bytes(ORIGIN)).get("images", ""))
        root = pattern.split("*", 1)[0]
        return pattern if root and Path(root).exists() else None

    @cached_property
    def sources(self) -> dict[str, CaseSource]:
        """The source files of each case that has some within reach, by case id.

        Raises:
            InputNotFoundError: the folder that ``images`` names does not exist.
        """
        if self.image_pattern is None:
            return {}
        wanted = {entry.case for entry in self.manifest.entries}
        found = discover(self.image_pattern, None, self.settings, self.pseudonyms).cases
        return {source.case_id: source for source in found if source.case_id in wanted}

    def stored(self, entry: DatasetEntry) -> StoredCase | None:
        """Return the case as the workspace holds it; None without a workspace.

        Raises:
            CorruptStoreError: the image that the workspace holds is not the one that was labelled.
        """
        if self.workspace is None:
            return None
        case = self.workspace.case(entry.case)
        if case.source_digest != entry.source_digest:
            raise CorruptStoreError(
                f"image '{case.folder}' in workspace '{self.workspace.url}' is not the one that was labelled: its "
                "source has changed since; label again, or load with images= naming the old files"
            )
        return case

    def uncertainty(self, entry: DatasetEntry) -> UncertaintyMap | None:
        """Return where a case's uncertainty is stored; None where it is not."""
        chunk, key = self._chunks.get(entry.case), self.manifest.meta.get("masks")
        if chunk is None or key is None or self.workspace is None:
            return None
        found = UncertaintyMap(self.workspace.stage(SEGMENT_STAGE, str(key)), chunk, entry.case)
        return found if self.workspace.files.exists(f"{found.path}/zarr.json") else None

    @cached_property
    def _chunks(self) -> dict[str, str]:
        """Chunk that each case was labelled in."""
        if self.workspace is None:
            return {}
        published = self.workspace.stage(PUBLISH_STAGE, self.manifest.folder.rstrip("/").rsplit("/", 1)[-1])
        return {
            str(case): chunk for chunk in published.records() for case in published.read_table(chunk, "files")["case"]
        }

    def damaged(self, entries: Iterable[DatasetEntry]) -> list[str]:
        """Hash images and uncertainties again, one case in memory at a time.

        Args:
            entries: cases to look at.

        Returns:
            Paths, below the workspace or as files, of what is missing or is not what was labelled.
        """
        return [path for entry in entries for path in self._damaged(entry)]

    def _damaged(self, entry: DatasetEntry) -> list[str]:
        if self.images is not None:
            return self._damaged_source(entry)
        if self.workspace is None:
            return self._damaged_source(entry) if entry.case in self.sources else []
        folder = f"images/{entry.case}"
        try:
            case = self.stored(entry)
            wrong = [] if case is None else self.workspace.verify_case(entry.case)
        except StoreError:
            return [folder]
        uncertainty = self.uncertainty(entry)
        if uncertainty is not None:
            record = uncertainty.store.records([uncertainty.chunk]).get(uncertainty.chunk)
            expected = None if record is None else record.outputs.get(uncertainty.path)
            if expected is not None and not uncertainty.is_sound(expected):
                wrong = [*wrong, uncertainty.path]
        return wrong

    def _damaged_source(self, entry: DatasetEntry) -> list[str]:
        source = self.sources.get(entry.case)
        if source is None:
            return [f"{entry.name} (no image in '{self.image_pattern}')"]
        return (
            [] if source_digest(source) == entry.source_digest else [f"{entry.name} (image in '{self.image_pattern}')"]
        )

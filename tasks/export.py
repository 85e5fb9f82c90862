"""Export of a workspace's data set."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ValidationError

from rfss_core.datasets import DatasetEntry, DatasetManifest, read_dataset
from rfss_core.datasets.exporters import EXPORTERS, ExportCase, ExportReport, ExportSet, export_cases
from rfss_core.datasets.ignore import IGNORE, ignore_value
from rfss_core.errors import CorruptStoreError, InputError, InputNotFoundError, StoreError, UnreadableImageError
from rfss_core.events import ChunkFinished, EventStream, StageFinished, StageStarted
from rfss_core.imaging import CaseSource, discover, read_image
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.settings import ExportSettings, ImagingSettings
from rfss_core.store import CaseRow, Workspace
from rfss_core.store.images import StoredCase
from rfss_core.store.stages import read_table
from tasks.evidence import UNCERTAINTY
from tasks.label_files import LATEST, PUBLISH_STAGE
from tasks.quality_files import FOLDER as QUALITY
from tasks.segment import STAGE as SEGMENT_STAGE

STAGE = "export"
ORIGIN = "origin.json"
"""File beside a data set's manifest that says where its images were."""


def export_dataset(
    workspace: str | Path,
    out: Path,
    settings: ExportSettings,
    images: str | None = None,
    events: EventStream | None = None,
) -> ExportReport:
    """Export the workspace's latest data set to a local folder.

    Args:
        workspace: workspace of a finished run.
        out: folder to write.
        settings: format and choice of cases.
        images: folder or glob of the source images, which DICOM-SEG refers to. Default: where they were.
        events: gets progress.

    Returns:
        What was exported and what was left out.

    Raises:
        InputError: the folder is taken, no case is chosen, or the set does not fit the format.
        InputNotFoundError: no data set has been published there.
        CorruptStoreError: the data set's files are not what was registered.
    """
    events = events or EventStream()
    begin = time.perf_counter()
    content = DatasetContent(Workspace.open(workspace, create=False), settings, images).collect()
    events.emit(StageStarted(STAGE, len(content.cases), 0, "cases"))

    def done(case: ExportCase) -> None:
        events.emit(ChunkFinished(STAGE, case.id, case.stored.n_slices, 0.0, 0.0, 0.0))

    report = export_cases(content, EXPORTERS[settings.format](settings), out, settings, done)
    events.emit(StageFinished(STAGE, time.perf_counter() - begin, f"{len(report.manifest['cases'])} cases"))
    return report


def export_settings(values: dict[str, Any], concepts: Path | None = None) -> ExportSettings:
    """Return settings of what was asked for.

    Args:
        values: fields of :class:`ExportSettings`; those that are None or empty take their defaults.
        concepts: YAML file, class name to [code value, coding scheme, meaning].

    Raises:
        InputError: a value is out of bounds or does not go with another; one line says which.
        InputNotFoundError: the file of concepts does not exist.
    """
    given = {name: value for name, value in values.items() if value not in (None, [], ())}
    if concepts is not None:
        if not concepts.is_file():
            raise InputNotFoundError(f"concepts: '{concepts}' does not exist")
        try:
            given["concepts"] = yaml.safe_load(concepts.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"concepts: '{concepts}' is not valid YAML ({' '.join(str(error).split())})") from error
    try:
        return ExportSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        message = first["msg"].removeprefix("Value error, ")
        shown = f", got {first['input']!r}" if where and where != "concepts" else ""
        raise InputError(f"{where + ': ' if where else ''}{message}{shown}") from error


@dataclass(frozen=True)
class DatasetContent:
    """The latest data set of a workspace, as cases to export."""

    workspace: Workspace
    settings: ExportSettings
    images: str | None = None
    """Folder or glob of the source images."""

    def collect(self) -> ExportSet:
        """Return the cases that the settings choose; nothing is read of them but the manifests.

        Raises:
            InputError: there is no such case, or no uncertainty is stored to ignore voxels by.
        """
        dataset = self._dataset
        classes = dict(dataset.classes)
        if self.settings.ignore is not None:
            if "masks" not in dataset.meta:
                raise InputError("this data set was published before uncertainty was stored; run `rfss label` again")
            classes[ignore_value(classes)] = IGNORE
        cases = [self._pseudo_labelled(entry) for entry in dataset.select(*self.settings.decisions)]
        if self.settings.with_expert:
            taken = {entry.case for entry in dataset.entries}
            cases += [self._expert(row) for row in self._rows.values() if row.labelled and row.case_id not in taken]
        ignore = next((value for value, name in classes.items() if name == IGNORE), None)
        ordered = tuple(sorted(cases, key=lambda case: case.id))
        return ExportSet(dataset.name, dataset.digest, classes, ordered, ignore, dataset.meta)

    def _pseudo_labelled(self, entry: DatasetEntry) -> ExportCase:
        stored = self._stored(entry.case, entry.source_digest)
        row = self._rows[entry.case]
        return ExportCase(
            id=entry.case,
            name=entry.name,
            patient=entry.patient,
            label_source="pseudo-label",
            part="train",
            label_digest=entry.sha256,
            stored=stored,
            read_labels=partial(self._pseudo_labels, entry),
            find_source=partial(self._source, stored, entry.name),
            modality=row.modality,
            body_part=row.body_part,
            entry=entry,
        )

    def _expert(self, row: CaseRow) -> ExportCase:
        stored = self._stored(row.case_id, row.source_digest)
        held_out = self.settings.held_out_as_test and row.case_id in self._held_out
        return ExportCase(
            id=row.case_id,
            name=row.name,
            patient=row.patient,
            label_source="reviewed" if row.label_source == REVIEWED_SOURCE else "expert",
            part="test" if held_out else "train",
            label_digest=row.label_digest,
            stored=stored,
            read_labels=stored.read_labels,
            find_source=partial(self._source, stored, row.name),
            modality=row.modality,
            body_part=row.body_part,
        )

    def _pseudo_labels(self, entry: DatasetEntry) -> npt.NDArray[np.uint8]:
        """Read a pseudo-label, its uncertain voxels as ``ignore`` where the settings say so."""
        masks = self.workspace.stage(SEGMENT_STAGE, self._dataset.meta["masks"])
        chunk = self._chunks[entry.case]
        labels = np.array(masks.read_array(chunk, f"{entry.case}/labels"), dtype=np.uint8)
        if self.settings.ignore is not None:
            uncertainty = np.asarray(masks.read_array(chunk, f"{entry.case}/{UNCERTAINTY}"))
            labels[uncertainty >= np.ceil(255 * self.settings.ignore)] = ignore_value(self._dataset.classes)
        return labels

    def _stored(self, case_id: str, source_digest: str) -> StoredCase:
        stored = self.workspace.case(case_id)
        if case_id not in self._rows or stored.source_digest != source_digest:
            raise CorruptStoreError(
                f"the image of case '{case_id}' in '{self.workspace.url}' is not the one that was labelled: it has "
                "changed since; run `rfss label` again, then export"
            )
        return stored

    def _source(self, stored: StoredCase, name: str) -> CaseSource:
        """Find the files of a case and compare them with what was labelled, voxel by voxel."""
        source = self._sources.get(stored.case_id)
        if source is None:
            raise UnreadableImageError(
                f"{name}: its files are not in '{self._image_pattern}'; name the folder that was labelled by --images",
                reason="no_source",
            )
        volume = read_image(source, self._imaging)
        if volume.grid != stored.grid or not np.array_equal(volume.pixels, stored.read_raw()):
            raise UnreadableImageError(
                f"{name}: its files in '{self._image_pattern}' are not those that were labelled; restore them, or run "
                "`rfss label` again",
                reason="changed_source",
            )
        return source

    @cached_property
    def _folder(self) -> str:
        if not self.workspace.files.exists(LATEST):
            raise InputNotFoundError(f"workspace '{self.workspace.url}' holds no data set yet; run `rfss label` first")
        return self.workspace.files.read_bytes(LATEST).decode().strip()

    @cached_property
    def _dataset(self) -> DatasetManifest:
        return read_dataset(f"{self.workspace.url}/{self._folder}")

    @cached_property
    def _rows(self) -> dict[str, CaseRow]:
        return {row.case_id: row for row in self.workspace.manifest().rows()}

    @cached_property
    def _chunks(self) -> dict[str, str]:
        """Chunk that each case was labelled in."""
        published = self.workspace.stage(PUBLISH_STAGE, self._folder.rsplit("/", 1)[-1])
        return {case: chunk for chunk in published.records() for case in published.read_table(chunk, "files")["case"]}

    @cached_property
    def _held_out(self) -> set[str]:
        try:
            return set(read_table(self.workspace.files, f"{QUALITY}/held_out.parquet")["case_id"])
        except StoreError as error:
            raise InputError(
                f"workspace '{self.workspace.url}' does not say which cases were held out; run `rfss label` again"
            ) from error

    @cached_property
    def _imaging(self) -> ImagingSettings:
        known = dict(self._dataset.meta.get("settings", {}).get("imaging", {}))
        return ImagingSettings.model_validate(known)

    @cached_property
    def _image_pattern(self) -> str:
        if self.images is not None:
            return self.images
        path = f"{self._folder}/{ORIGIN}"
        if not self.workspace.files.exists(path):
            raise InputError("name the folder of the DICOM series with --images; segmentation objects refer to them")
        return str(json.loads(self.workspace.files.read_bytes(path))["images"])

    @cached_property
    def _sources(self) -> dict[str, CaseSource]:
        return {source.case_id: source for source in discover(self._image_pattern, None, self._imaging).cases}

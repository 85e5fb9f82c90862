"""Export of a workspace's data set."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from rfss_core.datasets import PseudoLabelCase, PseudoLabelSet, load
from rfss_core.datasets.exporters import EXPORTERS, ExportCase, ExportReport, ExportSet, export_cases
from rfss_core.datasets.ignore import IGNORE
from rfss_core.datasets.manifest import JSON_NAME
from rfss_core.datasets.origin import LATEST
from rfss_core.datasets.reference import DatasetReference, is_folder
from rfss_core.errors import InputError, InputNotFoundError, StoreError, UnreadableImageError
from rfss_core.events import ChunkFinished, EventStream, StageFinished, StageStarted
from rfss_core.imaging import CaseSource, PrivateName, discover, read_image
from rfss_core.imaging.case import REVIEWED_SOURCE, UNKNOWN
from rfss_core.imaging.names import case_id
from rfss_core.settings import ExportSettings
from rfss_core.store import CaseRow, Workspace
from rfss_core.store.files import Files
from rfss_core.store.images import StoredCase
from rfss_core.store.private import private_names
from rfss_core.store.stages import read_table
from tasks.quality_files import FOLDER as QUALITY

STAGE = "export"


def export_dataset(
    reference: str | Path,
    out: Path,
    settings: ExportSettings,
    *,
    images: str | None = None,
    registry: str | None = None,
    events: EventStream | None = None,
) -> ExportReport:
    """Export a data set to a local folder.

    Args:
        reference: a workspace (its latest data set), or a data set as :func:`rfss_core.datasets.load` takes it.
        out: folder to write.
        settings: format and choice of cases.
        images: folder or glob of the source images, which DICOM-SEG refers to. Default: where they were.
        registry: where names are registered, an MLflow tracking URI.
        events: gets progress.

    Returns:
        What was exported and what was left out.

    Raises:
        InputError: unknown name, the folder is taken, no case is chosen, or the set does not fit the format.
        InputNotFoundError: no data set has been published there.
        CorruptStoreError: the data set's files are not what was registered.
    """
    events = events or EventStream()
    begin = time.perf_counter()
    content = DatasetContent(_load(reference, registry), settings, images).collect()

    def begun() -> None:
        events.emit(StageStarted(STAGE, len(content.cases), 0, "cases"))

    def done(case: ExportCase) -> None:
        events.emit(ChunkFinished(STAGE, case.id, case.stored.n_slices, 0.0, 0.0, 0.0))

    report = export_cases(content, EXPORTERS[settings.format](settings), out, settings, done, begun)
    events.emit(StageFinished(STAGE, time.perf_counter() - begin, f"{len(report.manifest['cases'])} cases"))
    return report


def _load(reference: str | Path, registry: str | None) -> PseudoLabelSet:
    if is_folder(reference) and not Files(str(reference)).exists(JSON_NAME):
        workspace = Workspace.open(reference, create=False)
        if not workspace.files.exists(LATEST):
            raise InputNotFoundError(f"workspace '{workspace.url}' holds no data set yet; run `rfss label` first")
    elif not is_folder(reference):
        named = DatasetReference.parse(str(reference))
        if named.alias is None and named.version is None:
            raise InputNotFoundError(
                f"there is no folder '{reference}'; a registered data set is named NAME@ALIAS or NAME/VERSION"
            )
    return load(reference, registry=registry, verify="labels", log_input=False)


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
        if first["loc"][:1] == ("concepts",):
            name = first["loc"][1] if len(first["loc"]) > 1 else "CLASS"
            raise InputError(
                f"concepts: '{concepts}' must hold lines such as {name}: [code value, coding scheme, meaning]"
            ) from error
        where = ".".join(str(part) for part in first["loc"][:2])
        message = first["msg"].removeprefix("Value error, ")
        shown = f", got {first['input']!r}" if where else ""
        raise InputError(f"{where + ': ' if where else ''}{message}{shown}") from error


@dataclass(frozen=True)
class DatasetContent:
    """A data set, and its workspace's expert cases, as cases to export."""

    dataset: PseudoLabelSet
    settings: ExportSettings
    images: str | None = None
    """Folder or glob of the source images."""

    def collect(self) -> ExportSet:
        """Return the cases that the settings choose; nothing is read of them but the manifests.

        Raises:
            InputError: there is no such case, no uncertainty is stored to ignore voxels by, or the data set lies in no
                workspace.
        """
        manifest, level = self.dataset.manifest, self.settings.ignore
        classes, ignore = self.dataset.classes, None
        chosen = self.dataset.cases(self.settings.decisions)
        if level is not None:
            if self.dataset.origin.uncertainty(chosen[0].entry) is None:
                raise InputError(
                    f"no uncertainty is stored beside data set '{self.dataset}'; run `rfss label` again, or export "
                    "without --ignore"
                )
            ignore = self.dataset.ignore_value
            classes[ignore] = IGNORE
        cases = [self._pseudo_labelled(case) for case in chosen]
        if self.settings.with_expert:
            taken = {entry.case for entry in manifest.entries}
            cases += [self._expert(row) for row in self._rows.values() if row.labelled and row.case_id not in taken]
        meta = dict(manifest.meta)
        if self.settings.original_names:
            meta.pop("privacy", None)
            cases = [self._renamed(case) for case in cases]
        elif self.settings.format == "dicom-seg" and "privacy" in meta:
            raise InputError(
                "a DICOM segmentation object carries its patient's name and id by the standard, and this data set's "
                "case ids are salted; add --original-names, or choose another format"
            )
        ordered = tuple(sorted(cases, key=lambda case: case.id))
        return ExportSet(manifest.name, manifest.digest, classes, ordered, ignore, meta)

    def _renamed(self, case: ExportCase) -> ExportCase:
        known = self._private.get(case.id)
        if known is None:
            raise InputError(
                f"workspace '{self._workspace.url}' does not say what case '{case.id}' stands for; run `rfss label` "
                "again where its image is"
            )
        own = case_id(known.name)
        entry = case.entry and replace(case.entry, case=own, name=known.name, patient=known.patient)
        return replace(case, id=own, name=known.name, patient=known.patient, entry=entry)

    def _pseudo_labelled(self, case: PseudoLabelCase) -> ExportCase:
        self._workspace.url  # noqa: B018 - refuses a data set without a workspace
        stored, row = case.stored, self._rows.get(case.id)
        assert stored is not None
        return ExportCase(
            id=case.id,
            name=case.name,
            patient=case.patient,
            label_source="pseudo-label",
            part="train",
            label_digest=case.entry.sha256,
            stored=stored,
            read_labels=partial(case.label, self.settings.ignore),
            find_source=partial(self._source, stored, case.name),
            modality=stored.modality,
            body_part=UNKNOWN if row is None else row.body_part,
            weight=case.weight,
            entry=case.entry,
        )

    def _expert(self, row: CaseRow) -> ExportCase:
        stored = self._workspace.case(row.case_id)
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

    def _source(self, stored: StoredCase, name: str) -> CaseSource:
        """Find the files of a case and compare them with what was labelled, voxel by voxel."""
        source = self._sources.get(stored.case_id)
        if source is None:
            raise UnreadableImageError(
                f"{name}: its files are not in '{self._image_pattern}'; name the folder that was labelled by --images",
                reason="no_source",
            )
        volume = read_image(source, self.dataset.origin.settings)
        if volume.grid != stored.grid or not np.array_equal(volume.pixels, stored.read_raw()):
            raise UnreadableImageError(
                f"{name}: its files in '{self._image_pattern}' are not those that were labelled; restore them, or run "
                "`rfss label` again",
                reason="changed_source",
            )
        return source

    @cached_property
    def _workspace(self) -> Workspace:
        workspace = self.dataset.origin.workspace
        if workspace is None:
            raise InputError(
                f"data set '{self.dataset.folder}' lies in no workspace, which holds the images; export it from the "
                "workspace that it was published in"
            )
        return workspace

    @cached_property
    def _private(self) -> dict[str, PrivateName]:
        return private_names(self._workspace.files)

    @cached_property
    def _rows(self) -> dict[str, CaseRow]:
        return {row.case_id: row for row in self._workspace.manifest().rows()}

    @cached_property
    def _held_out(self) -> set[str]:
        files = self._workspace.files
        latest = files.read_bytes(LATEST).decode().strip()
        if latest.rsplit("/", 1)[-1] != self.dataset.folder.rstrip("/").rsplit("/", 1)[-1]:
            raise InputError(
                f"the held-out cases are known of the workspace's latest run alone, and '{self.dataset}' is older; "
                "export without --held-out-as-test"
            )
        try:
            return set(read_table(files, f"{QUALITY}/held_out.parquet")["case_id"])
        except StoreError as error:
            raise InputError(
                f"workspace '{self._workspace.url}' does not say which cases were held out; run `rfss label` again"
            ) from error

    @cached_property
    def _image_pattern(self) -> str:
        pattern = self.images or self.dataset.origin.image_pattern
        if pattern is None:
            raise InputError("name the folder of the DICOM series with --images; segmentation objects refer to them")
        return pattern

    @cached_property
    def _sources(self) -> dict[str, CaseSource]:
        found = discover(self._image_pattern, None, self.dataset.origin.settings, self.dataset.origin.pseudonyms)
        return {source.case_id: source for source in found.cases}

"""Workspace: the folder or object-store prefix that holds all of one labelling project."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rfss_core.digest import digest_json
from rfss_core.errors import CaseError, CorruptStoreError, InputError, InputNotFoundError, StoreError
from rfss_core.imaging import CaseSource, IntensityWindow, Quarantined, Volume
from rfss_core.imaging.case import EXPERT_SOURCE
from rfss_core.store.files import Files
from rfss_core.store.images import StoredCase, image_folder, write_image
from rfss_core.store.manifest import CaseRow, Manifest, slice_contents
from rfss_core.store.records import Record, Records
from rfss_core.store.stages import StageStore, verify_outputs

FORMAT = "rfss-workspace"
FORMAT_VERSION = 1
MARK = "rfss.json"
INGEST = "ingest"
_INGEST_KEY = "images"
"""One key for all settings: a case has one place, so one record. What it depends on is in its input digest."""
_HARMLESS = {"lost+found", ".DS_Store"}


class Workspace:
    """Everything that one labelling project holds; see docs/architecture.md for the layout.

    Cheap to open; pickles as its URL, so that each worker process opens its own. Different processes may write
    different cases, and different chunks, at the same time.

    Args:
        files: files of a workspace that exists already; use :meth:`open`.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._ingest = Records(files, INGEST, _INGEST_KEY)

    def __repr__(self) -> str:
        return f"Workspace({self.url!r})"

    def __reduce__(self) -> tuple[type[Workspace], tuple[Files]]:
        return (Workspace, (self.files,))

    @property
    def url(self) -> str:
        """Folder or URL of the workspace."""
        return self.files.url

    @classmethod
    def open(cls, url: str | Path, *, create: bool = True) -> Workspace:
        """Open a workspace, or begin one where there is nothing yet.

        Args:
            url: local folder or fsspec URL.
            create: begin a workspace in a missing or empty folder.

        Raises:
            InputNotFoundError: there is no workspace and ``create`` is off.
            InputError: the folder holds something else, or a workspace of a newer RFSS.
            CorruptStoreError: the workspace's ``rfss.json`` is damaged.
            StoreError: the folder cannot be read or written.
        """
        files = Files(url)
        if files.root is not None and files.root.exists() and not files.root.is_dir():
            raise InputError(f"workspace '{files.url}' is a file; name a folder")
        if files.exists(MARK):
            _check_format(files)
            return cls(files)
        foreign = [name for name in files.names(".") if name not in _HARMLESS]
        if foreign:
            raise InputError(
                f"folder '{files.url}' is not an RFSS workspace: it has no {MARK}, but holds '{foreign[0]}'; "
                "name an empty or a new folder"
            )
        if not create:
            raise InputNotFoundError(f"there is no RFSS workspace at '{files.url}'; check the path")
        mark = {"format": FORMAT, "version": FORMAT_VERSION}
        files.write_bytes(MARK, json.dumps(mark, sort_keys=True).encode() + b"\n")
        return cls(files)

    def write_case(
        self,
        case: CaseSource,
        volume: Volume,
        window: IntensityWindow,
        label: npt.NDArray[np.uint8] | None,
        source_digest: str,
        settings_digest: str = "",
    ) -> CaseRow:
        """Store a case whole, or not at all: data, read back and hash, then the completion record.

        Args:
            case: where the volume comes from.
            volume: pixels [Z, H, W] or [Z, H, W, 3], grid and spacing.
            window: intensities that become 0 and 1.
            label: uint8 [Z, H, W], or None.
            source_digest: sha256 over the files of image and label map.
            settings_digest: digest of the imaging settings that led from the files to ``volume``.

        Returns:
            The case's row of the manifest.

        Raises:
            ValueError: shapes that do not belong together.
            StorageFullError: no space is left; the case has no record then.
            CorruptStoreError: what was read back is not what was written.
        """
        self.remove_case(case.case_id)
        written = write_image(self.files, case, volume, window, label, source_digest)
        z, height, width = volume.pixels.shape[:3]
        contents = [] if label is None else slice_contents(label)
        row = CaseRow(
            case_id=case.case_id,
            name=case.name,
            patient=case.patient,
            modality=case.modality,
            kind=case.kind,
            source_digest=source_digest,
            pixel_digest=written.pixel_digest,
            label_digest=written.label_digest,
            n_slices=z,
            height=height,
            width=width,
            spacing_z=float(volume.spacing[0]),
            spacing_y=float(volume.spacing[1]),
            spacing_x=float(volume.spacing[2]),
            suffix=volume.grid.suffix,
            classes=sorted({value for classes, _ in contents for value in classes}),
            labelled=label is not None,
            body_part=case.body_part,
            label_source="" if label is None else case.label_source,
        )
        self._ingest.write(
            Record(
                stage=INGEST,
                chunk=case.case_id,
                key=_INGEST_KEY,
                input_digest=ingest_digest(case, source_digest, settings_digest),
                outputs=written.outputs,
                detail={"case": dataclasses.asdict(row), "slices": contents},
            )
        )
        return row

    def quarantine_case(
        self, case: CaseSource, error: CaseError, source_digest: str, settings_digest: str = ""
    ) -> Record:
        """Record that a case is unusable, so that a resumed ingest does not read it again.

        Args:
            case: the case; what an earlier run stored of it is removed.
            error: why.
            source_digest: as for :meth:`write_case`.
            settings_digest: as for :meth:`write_case`.
        """
        self.remove_case(case.case_id)
        record = Record(
            stage=INGEST,
            chunk=case.case_id,
            key=_INGEST_KEY,
            input_digest=ingest_digest(case, source_digest, settings_digest),
            status="quarantined",
            reason=error.reason,
            message=str(error),
            detail={"name": case.name, "patient": case.patient},
        )
        self._ingest.write(record)
        return record

    def ingested(self, case: CaseSource, source_digest: str, settings_digest: str = "") -> Record | None:
        """Return the record of a case that need not be read again: stored, or quarantined, from the same input."""
        return self._ingest.trusted(case.case_id, ingest_digest(case, source_digest, settings_digest))

    def case(self, case_id: str) -> StoredCase:
        """Return a stored case; nothing is read yet."""
        return StoredCase(self.files, case_id)

    def remove_case(self, case_id: str) -> None:
        """Remove a case, its record first."""
        self._ingest.remove(case_id)
        self.files.remove_tree(image_folder(case_id))

    def verify_case(self, case_id: str) -> list[str]:
        """Hash a stored case again and return the paths that are damaged or missing.

        Raises:
            StoreError: the case has no sound record.
        """
        record = self._ingest.read(case_id)
        if record is None:
            raise StoreError(f"case '{case_id}' has no completion record in workspace '{self.url}'; ingest it again")
        return verify_outputs(self.files, record)

    def ingest_records(self) -> dict[str, Record]:
        """Return all sound ingest records by case id, after one listing."""
        return self._ingest.all()

    def write_manifest(
        self, quarantined: Sequence[Quarantined] = (), case_ids: Iterable[str] | None = None
    ) -> Manifest:
        """Build the manifest from the ingest records, write it and return it.

        Args:
            quarantined: inputs that never became a case.
            case_ids: the cases of this run. Default: all that were ever ingested.
        """
        wanted = None if case_ids is None else list(case_ids)
        manifest = Manifest.from_records(self._ingest.all(wanted).values(), quarantined, wanted)
        manifest.write(self.files)
        return manifest

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            StoreError: ingest has not ended yet.
        """
        return Manifest.read(self.files)

    def stage(self, name: str, key: str) -> StageStore:
        """Return the outputs and records of a stage.

        Args:
            name: name of the stage, for example ``embed``.
            key: digest (or a part of it) of all that the stage's output depends on besides the chunk.
        """
        return StageStore(self.files, name, key)


def ingest_digest(case: CaseSource, source_digest: str, settings_digest: str) -> str:
    """Return the digest of all that a stored case depends on."""
    identity = [case.case_id, case.name, case.patient, case.modality, case.body_part, case.kind]
    reviewed = [] if case.label_source == EXPERT_SOURCE else [case.label_source]
    return digest_json([*identity, source_digest, settings_digest, FORMAT_VERSION, *reviewed])


def _check_format(files: Files) -> None:
    try:
        mark = json.loads(files.read_bytes(MARK))
        known, version = mark["format"] == FORMAT, int(mark["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"'{MARK}' of workspace '{files.url}' is damaged; restore it, or start in a new folder"
        ) from error
    if not known:
        raise InputError(f"'{MARK}' in '{files.url}' is not of an RFSS workspace; name an empty or a new folder")
    if version > FORMAT_VERSION:
        raise InputError(
            f"workspace '{files.url}' has format {version}, but this RFSS knows up to {FORMAT_VERSION}; update RFSS"
        )

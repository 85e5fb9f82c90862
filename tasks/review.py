"""The review loop: pseudo-labels out to a reviewer, corrected label maps back into the workspace."""

from __future__ import annotations

import getpass
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.datasets import DatasetManifest, read_dataset
from rfss_core.datasets.origin import LATEST
from rfss_core.datasets.review import (
    DOCUMENT,
    README,
    WORKLIST,
    ReviewCase,
    ReviewDocument,
    WorklistRow,
    read_document,
    read_worklist,
    write_worklist,
)
from rfss_core.datasets.viewers import ITK_SNAP_NAME, SLICER_NAME, class_palette, itk_snap_labels, slicer_colors
from rfss_core.digest import digest_array
from rfss_core.errors import CaseError, InputError, LabelError, ReviewError, StaleReviewError, UnreadableImageError
from rfss_core.imaging import CaseSource, Quarantined, SourceGrid, read_label, write_image, write_label
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.imaging.output import write_atomically
from rfss_core.settings import ImagingSettings
from rfss_core.store import Manifest, Review, Reviews, Workspace
from tasks.queue import QueuedCase, ReviewQueue


@dataclass(frozen=True)
class ReviewImport:
    """What an import found."""

    imported: tuple[Review, ...]
    untouched: tuple[str, ...]
    """Cases whose mask is unchanged and that nobody marked as reviewed, or that are marked with no."""
    refused: tuple[Quarantined, ...]
    """Label maps that cannot be used, and why."""

    def raise_refused(self) -> None:
        """Raise what was refused as one error.

        Raises:
            ReviewError: names each label map that was refused.
        """
        if self.refused:
            listed = "; ".join(f"{entry.message} ({entry.reason})" for entry in self.refused)
            raise ReviewError(
                f"{len(self.refused)} reviewed label map{'s' if len(self.refused) > 1 else ''} cannot be used: "
                f"{listed}. {len(self.imported)} others were imported; mend these and import the folder again"
            )


def export_review(workspace_url: str, out: Path, n: int = 10, accepted: bool = False) -> list[ReviewCase]:
    """Write the first cases of the review queue to a folder for reviewers.

    Args:
        workspace_url: workspace of a finished run.
        out: folder to write; new or empty.
        n: number of cases.
        accepted: offer accepted pseudo-labels too.

    Returns:
        The cases, in order. Those that were reviewed since the run are left out.

    Raises:
        InputNotFoundError: no run has finished there.
        InputError: nothing to review, the folder is taken, or the queue is older than the data set.
    """
    workspace = Workspace.open(workspace_url, create=False)
    queue = ReviewQueue.read(workspace)
    folder = f"{workspace.url}/{workspace.files.read_bytes(LATEST).decode().strip()}"
    dataset = read_dataset(folder)
    if dataset.digest != queue.digest:
        raise InputError(f"the review queue of '{workspace.url}' is older than its data set; run `rfss label` again")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"'{out}' is taken; name a new or an empty folder")
    chosen = _chosen(workspace, queue, dataset, accepted)[:n]
    cases = [_export_case(workspace, dataset, queue, queued, out) for queued in chosen]
    document = ReviewDocument(
        dataset=queue.dataset,
        dataset_digest=queue.digest,
        fingerprint=queue.fingerprint,
        classes=queue.classes,
        cases=cases,
    )
    for name, text in {
        ITK_SNAP_NAME: itk_snap_labels(queue.classes),
        SLICER_NAME: slicer_colors(queue.classes),
        README: _README,
        WORKLIST: write_worklist(cases),
        DOCUMENT: document.model_dump_json(indent=1) + "\n",
    }.items():
        write_atomically(out / name, text.encode())
    return cases


def import_review(folder: Path, workspace_url: str, reviewer: str | None = None) -> ReviewImport:
    """Take corrected label maps back into the workspace, for the next run's support set.

    A label map counts where a voxel changed, or where the worklist's column ``reviewed`` says yes; never where it says
    no. It must lie on its image's own grid and hold declared classes alone. What is sound is imported, whatever is
    wrong with others. The source's label folder is not touched.

    Args:
        folder: what :func:`export_review` wrote.
        workspace_url: the workspace that it was exported from.
        reviewer: who reviewed, where the worklist does not say; default: the login name.

    Returns:
        What was imported, left alone and refused.

    Raises:
        InputError: the folder is no review folder, or of another workspace.
        ReviewError: the worklist cannot be read.
    """
    workspace = Workspace.open(workspace_url, create=False)
    document, rows = read_document(folder), read_worklist(folder)
    unknown = sorted(set(rows) - {case.name for case in document.cases})
    if unknown:
        raise ReviewError(
            f"the worklist names case '{unknown[0]}', which was not exported; keep the names as they were"
        )
    desk = _Desk(workspace, folder, document, reviewer or _login())
    imported, untouched, refused = [], [], []
    for case in document.cases:
        row = rows.get(case.name, WorklistRow(case=case.name, reviewed="", reviewer="", note=""))
        try:
            review = desk.take(case, row)
        except CaseError as error:
            refused.append(Quarantined(case.name, error.reason, str(error), case.patient))
            continue
        if review is None:
            untouched.append(case.name)
        else:
            imported.append(review)
    return ReviewImport(tuple(imported), tuple(untouched), tuple(refused))


class _Desk:
    """Checks label maps of one review folder and keeps them."""

    def __init__(self, workspace: Workspace, folder: Path, document: ReviewDocument, reviewer: str) -> None:
        self._workspace = workspace
        self._folder = folder
        self._document = document
        self._reviewer = reviewer
        self._reviews = Reviews(workspace.files)
        self._known = self._reviews.all()
        self._settings = _imaging_of(workspace)
        self._dataset = self._exported_from()
        manifest = workspace.manifest()
        self._digests = _image_digests(manifest, self._known)
        if document.cases and not any(case.case_id in self._digests for case in document.cases):
            raise InputError(
                f"'{folder}' was not exported from workspace '{workspace.url}'; name the one that it came from"
            )

    def take(self, case: ReviewCase, row: WorklistRow) -> Review | None:
        """Return the review as it was kept; None where there is none."""
        if row.reviewed == "no":
            return None
        path = self._folder / case.label
        if not path.is_file():
            if not row.reviewed:
                return None
            raise UnreadableImageError(f"{case.label}: is missing; save the label map under this name")
        if self._digests.get(case.case_id) != case.image_digest:
            raise StaleReviewError(f"{case.name}: the image has changed since the export; export and review it again")
        grid = self._workspace.case(case.case_id).grid
        labels = self._checked(case, path, grid)
        changed = digest_array(labels) != case.label_digest
        if not changed and not row.reviewed:
            return None
        saved = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        review = Review(
            case_id=case.case_id,
            name=case.name,
            reviewer=row.reviewer or self._reviewer,
            reviewed_at=saved.isoformat(timespec="seconds"),
            imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
            changed=changed,
            image_digest=case.image_digest,
            pseudo_label_sha256=case.pseudo_label_sha256,
            dataset_digest=self._document.dataset_digest,
            fingerprint=self._document.fingerprint,
            suffix=grid.suffix,
            dice=self._agreement(case, labels, grid),
            note=row.note,
        )
        return self._reviews.add(review, _encoded(labels, grid))

    def _checked(self, case: ReviewCase, path: Path, grid: SourceGrid) -> npt.NDArray[np.uint8]:
        source = CaseSource(case.case_id, case.name, case.patient, "unknown", grid.kind, path, path)
        # Without a class 255 it is how a drawing program saved class 1.
        labels = read_label(source, grid, self._settings, exact=255 in self._document.classes)
        values = {int(value) for value in np.unique(labels)} - {0}
        if extra := sorted(values - set(self._document.classes)):
            declared = ", ".join(f"{value} {name}" for value, name in self._document.classes.items())
            raise LabelError(
                f"{case.label}: holds {', '.join(map(str, extra))}, which no class has "
                f"(declared: {declared}); relabel these voxels",
                reason="undeclared_class",
            )
        return labels

    def _agreement(self, case: ReviewCase, labels: npt.NDArray[np.uint8], grid: SourceGrid) -> dict[str, float]:
        """Return the Dice of the pseudo-label against the corrected label map, by class."""
        before = self._pseudo_label(case, grid)
        found = {}
        for value, name in self._document.classes.items():
            old, new = before == value, labels == value
            total = int(old.sum()) + int(new.sum())
            found[name] = 1.0 if total == 0 else round(2 * int((old & new).sum()) / total, 6)
        return found

    def _pseudo_label(self, case: ReviewCase, grid: SourceGrid) -> npt.NDArray[np.uint8]:
        if self._dataset is None:
            raise StaleReviewError(
                f"{case.name}: the workspace no longer holds the data set that it was exported from; export it again"
            )
        folder, paths = self._dataset
        data = self._workspace.files.read_bytes(f"{folder}/{paths[case.case_id]}")
        return _decoded(data, case, grid, self._settings)

    def _exported_from(self) -> tuple[str, dict[str, str]] | None:
        """Return folder and label paths of the data set that was exported; None where it is gone."""
        for key in self._workspace.files.names("datasets"):
            folder = f"datasets/{key}"
            if self._workspace.files.exists(f"{folder}/manifest.json"):
                dataset = read_dataset(f"{self._workspace.url}/{folder}", verify=False)
                if dataset.digest == self._document.dataset_digest:
                    return folder, {entry.case: entry.label_path for entry in dataset.entries}
        return None


def _chosen(workspace: Workspace, queue: ReviewQueue, dataset: DatasetManifest, accepted: bool) -> list[QueuedCase]:
    sums = {entry.case: entry.sha256 for entry in dataset.entries}
    done = {
        case_id for case_id, review in Reviews(workspace.files).all().items()
        if sums.get(case_id) == review.pseudo_label_sha256
    }  # fmt: skip
    left = [queued for queued in queue.cases if queued.case_id not in done]
    chosen = [queued for queued in left if accepted or queued.decision != "accept"]
    if not chosen:
        why = "every pseudo-label was reviewed since the last run; run `rfss label` again" if not left else (
            "every pseudo-label is accepted; add --accepted to review them all the same"
        )  # fmt: skip
        raise InputError(f"workspace '{workspace.url}' has nothing to review: {why}")
    return chosen


def _export_case(
    workspace: Workspace, dataset: DatasetManifest, queue: ReviewQueue, queued: QueuedCase, out: Path
) -> ReviewCase:
    case = workspace.case(queued.case_id)
    entry = next(entry for entry in dataset.entries if entry.case == queued.case_id)
    image, label = f"images/{queued.name}{case.grid.suffix}", f"labels/{queued.name}{case.grid.suffix}"
    write_image(case.read_raw(), case.grid, out / image)
    data = workspace.files.read_bytes(f"{dataset.folder.removeprefix(workspace.url).strip('/')}/{entry.label_path}")
    written = ReviewCase(
        **queued.model_dump(exclude={"serves"}),
        image=image,
        label=label,
        image_digest=entry.source_digest,
        pseudo_label_sha256=entry.sha256,
        label_digest="",
    )
    labels = _decoded(data, written, case.grid, ImagingSettings(empty_labels="keep"))
    write_label(labels, case.grid, out / label, class_palette(queue.classes))
    return written.model_copy(update={"label_digest": digest_array(labels)})


def _decoded(data: bytes, case: ReviewCase, grid: SourceGrid, settings: ImagingSettings) -> npt.NDArray[np.uint8]:
    with tempfile.TemporaryDirectory(prefix="rfss-review-") as folder:
        path = Path(folder) / f"label{grid.suffix}"
        path.write_bytes(data)
        source = CaseSource(case.case_id, case.name, case.patient, "unknown", grid.kind, path, path)
        return read_label(source, grid, settings.model_copy(update={"empty_labels": "keep"}), exact=True)


def _encoded(labels: npt.NDArray[np.uint8], grid: SourceGrid) -> bytes:
    with tempfile.TemporaryDirectory(prefix="rfss-review-") as folder:
        path = Path(folder) / f"label{grid.suffix}"
        write_label(labels, grid, path)
        return path.read_bytes()


def _imaging_of(workspace: Workspace) -> ImagingSettings:
    """Return the imaging settings of the workspace's latest run."""
    folder = f"{workspace.url}/{workspace.files.read_bytes(LATEST).decode().strip()}"
    stored: dict[str, Any] = read_dataset(folder, verify=False).meta.get("settings", {}).get("imaging", {})
    return ImagingSettings.model_validate(stored)


def _image_digests(manifest: Manifest, known: dict[str, Review]) -> dict[str, str]:
    """Return the digest of the image's files of each case that has no label of an expert."""
    digests: dict[str, str] = {}
    columns = manifest.cases[["case_id", "source_digest", "labelled", "label_source"]]
    for case_id, digest, labelled, source in columns.itertuples(index=False):
        if not labelled:
            digests[case_id] = digest
        elif source == REVIEWED_SOURCE and case_id in known:
            # The manifest's digest covers the reviewed label map too.
            digests[case_id] = known[case_id].image_digest
    return digests


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return os.environ.get("USER", "unknown")


_README = f"""What to do

1. Open an image of images/ with the label map of the same name in labels/.
   ITK-SNAP:  File, Open Main Image; Segmentation, Open Segmentation and Import Label Descriptions ({ITK_SNAP_NAME})
   3D Slicer: load both (the label map as LabelMap or Segmentation); load {SLICER_NAME} as a colour table.
   PNG:       any drawing program that keeps indexed colours; the palette shows the classes.
2. Correct the label map and save it under its own name, in its own format.
3. In {WORKLIST} write yes into the column reviewed, also where nothing had to be changed; no where it must not count.
   A label map that changed counts without a mark. Write your name into the column reviewer.
4. rfss review import THIS_FOLDER --workspace DIR

{WORKLIST} begins with the case whose correction is expected to help the others most (expected_gain: rise of their mean
Dice, an upper guess). {DOCUMENT} belongs to the import: leave it as it is.
"""

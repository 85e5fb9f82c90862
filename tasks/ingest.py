"""Stage ingest: images and labels into the workspace, bad input into quarantine."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

from prefect import task

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.errors import CaseError, InputError, StaleReviewError, TooManyQuarantinedError
from rfss_core.events import CaseQuarantined
from rfss_core.imaging import (
    CaseSource,
    Quarantined,
    discover,
    estimate_window,
    hiding,
    read_image,
    read_label,
    source_digest,
)
from rfss_core.settings import ImagingSettings
from rfss_core.store import Manifest, Review, Reviews, Workspace
from rfss_core.store.private import hold_identity, keep_private
from tasks.isolation import WORK_FAILED, Probe, Refusal
from tasks.phases import Phases
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.sources import log_changes

log = logging.getLogger("rfss")


@dataclass(frozen=True)
class IngestUnit:
    """One case to ingest."""

    source: CaseSource
    set_aside: Refusal | None = None
    """Why the case is not even looked at: an attempt to read it failed, or ended its worker."""
    review: Review | None = None
    """Of a case without a label of an expert."""

    @property
    def id(self) -> str:
        """The case's id."""
        return self.source.case_id

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The one case."""
        return (self.source.case_id,)

    @property
    def slicewise(self) -> bool:
        """A file is read whole."""
        return False

    def probing(self, probe: Probe) -> IngestUnit:  # noqa: ARG002 - a single case has no other part
        """Return the unit: there is nothing smaller."""
        return self

    def without(self, refusals: tuple[Refusal, ...]) -> IngestUnit:
        """Return the unit that sets its case aside."""
        return replace(self, set_aside=refusals[0] if refusals else None)


@dataclass(frozen=True)
class IngestJob:
    """What every worker of the stage needs; small and picklable."""

    workspace: str
    settings: ImagingSettings
    again: bool = False
    """Read cases again that an earlier run set aside because reading them failed."""


def ingest_case(job: IngestJob, unit: IngestUnit) -> ChunkReport:
    """Read, check, normalise and store one case; runs in a worker.

    A case that cannot be used comes back in ``quarantined``; everything else that is raised is the store's trouble.
    """
    if unit.review is None:
        return _ingest(job, unit, unit.source)
    try:
        with Reviews(Workspace.open(job.workspace).files).attached(unit.source, unit.review) as reviewed:
            return _ingest(job, unit, reviewed)
    except StaleReviewError as error:
        set_aside = Quarantined(f"reviewed:{unit.source.name}", error.reason, str(error), unit.source.patient)
        report = _ingest(job, unit, unit.source)
        return replace(report, quarantined=(*report.quarantined, set_aside))
    except CaseError as error:
        return _refused(unit.source, error.reason, str(error))


def _ingest(job: IngestJob, unit: IngestUnit, source: CaseSource) -> ChunkReport:
    settings = job.settings
    workspace = Workspace.open(job.workspace)
    phases = Phases()
    dependencies = digest_json([settings.model_dump(mode="json"), code_version("imaging")])
    try:
        with phases.reading(), hiding(source):
            digest = source_digest(source)
    except CaseError as error:
        return _refused(source, error.reason, str(error))
    if unit.set_aside is not None:
        workspace.quarantine_case(source, unit.set_aside.error, digest, dependencies)
        return _refused(source, unit.set_aside.reason, unit.set_aside.message)
    known = workspace.ingested(source, digest, dependencies)
    if known is not None and not (job.again and known.reason in WORK_FAILED):
        if known.status == "quarantined":
            return _refused(source, known.reason or CaseError.reason, known.message)
        return ChunkReport(source.case_id, 0)
    try:
        with phases.reading(), hiding(source):
            volume = read_image(source, settings)
            label = None if source.label is None else read_label(source, volume.grid, settings)
            window = estimate_window(volume.pixels, settings)
    except CaseError as error:
        workspace.quarantine_case(source, error, digest, dependencies)
        return _refused(source, error.reason, str(error))
    with phases.writing():
        row = workspace.write_case(source, volume, window, label, digest, dependencies)
    return ChunkReport(source.case_id, row.n_slices, phases.read_s, phases.compute_s, phases.write_s)


def _refused(source: CaseSource, reason: str, message: str) -> ChunkReport:
    return ChunkReport(source.case_id, 0, quarantined=(Quarantined(source.name, reason, message, source.patient),))


@task(name="ingest", **STAGE_TASK)
def ingest(run: Run, labelled_only: bool = False, needs_labels: bool = True) -> Manifest:
    """Ingest every case that the settings name and write the manifest.

    Args:
        run: the run.
        labelled_only: leave images without a label of an expert alone, reviewed ones too.
        needs_labels: without any labelled case there is nothing to do.

    Returns:
        The manifest of the usable cases.

    Raises:
        InputError: nothing to do: no image, no usable label.
        TooManyQuarantinedError: more of the input is unusable than the settings allow.
        SettingsError: the workspace's case ids are of another kind, or of another salt.
    """
    settings = run.settings
    with run.stage("ingest") as stage:
        hold_identity(run.workspace.files, run.pseudonyms)
        found = discover(settings.images, settings.labels, settings.imaging, run.pseudonyms)
        if found.private and not keep_private(run.workspace.files, found.private):
            log.info("an object store keeps no names: what the case ids stand for, the salt and the images tell")
        for entry in found.quarantined:
            run.events.emit(CaseQuarantined(entry.name, entry.reason, entry.message, entry.case_id))
        reviews = {} if labelled_only else Reviews(run.workspace.files).all()
        units = [
            IngestUnit(source, review=reviews.get(source.case_id) if source.label is None else None)
            for source in found.cases
            if source.label is not None or not labelled_only
        ]
        job = IngestJob(run.workspace.url, settings.imaging, settings.execution.retry_quarantined)
        reports = stage.run_chunks(partial(ingest_case, job), units, unit="cases", isolating=True)
        quarantined = [*found.quarantined, *(entry for report in reports for entry in report.quarantined)]
        refused = {entry.name for entry in quarantined}
        kept = [unit.source for unit in units if unit.source.name not in refused]
        manifest = run.workspace.write_manifest(quarantined, [source.case_id for source in kept])
        if not labelled_only:
            log_changes(run.workspace, manifest)
        stage.note = f"{len(kept)} cases, {len(quarantined)} set aside"
    _check(run, manifest, len(units) + len(found.quarantined), quarantined, needs_labels)
    return manifest


def _check(run: Run, manifest: Manifest, total: int, quarantined: list[Quarantined], needs_labels: bool) -> None:
    share = len(quarantined) / max(1, total)
    limit = run.settings.execution.max_quarantined_fraction
    listed = "; ".join(f"{entry.case_id} ({entry.reason})" for entry in quarantined[:3])
    if share > limit:
        raise TooManyQuarantinedError(
            f"{len(quarantined)} of {total} inputs are unusable ({share:.0%}, allowed {limit:.0%}); first: {listed}. "
            "`rfss status` says what is wrong with each; mend or remove them, or raise "
            "execution.max_quarantined_fraction"
        )
    why = f" ({listed})" if quarantined else ""
    if manifest.cases.empty:
        raise InputError(f"no usable image is left among {total} inputs{why}; check {run.settings.images}")
    if needs_labels and not manifest.cases["labelled"].any():
        raise InputError(
            f"no usable labelled case is left among {total} inputs{why}; add label maps to {run.settings.labels}"
        )

"""Stage ingest: images and labels into the workspace, bad input into quarantine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from prefect import task

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.errors import CaseError, InputError, TooManyQuarantinedError
from rfss_core.events import CaseQuarantined
from rfss_core.imaging import (
    CaseSource,
    Quarantined,
    discover,
    estimate_window,
    read_image,
    read_label,
    source_digest,
)
from rfss_core.settings import ImagingSettings
from rfss_core.store import Manifest, Workspace
from tasks.run import STAGE_TASK, ChunkReport, Run


@dataclass(frozen=True)
class IngestUnit:
    """One case to ingest."""

    source: CaseSource

    @property
    def id(self) -> str:
        """The case's id."""
        return self.source.case_id


def ingest_case(workspace_url: str, settings: ImagingSettings, unit: IngestUnit) -> ChunkReport:
    """Read, check, normalise and store one case; runs in a worker.

    A case that cannot be used comes back in ``quarantined``; everything else that is raised is the store's trouble.
    """
    source = unit.source
    workspace = Workspace.open(workspace_url)
    started = time.perf_counter()
    dependencies = digest_json([settings.model_dump(mode="json"), code_version("imaging")])
    try:
        digest = source_digest(source)
    except CaseError as error:
        return _refused(source, error.reason, str(error))
    if (known := workspace.ingested(source, digest, dependencies)) is not None:
        if known.status == "quarantined":
            return _refused(source, known.reason or CaseError.reason, known.message)
        return ChunkReport(source.case_id, 0)
    try:
        volume = read_image(source, settings)
        label = None if source.label is None else read_label(source, volume.grid, settings)
        window = estimate_window(volume.pixels, settings)
    except CaseError as error:
        workspace.quarantine_case(source, error, digest, dependencies)
        return _refused(source, error.reason, str(error))
    read_s = time.perf_counter() - started
    started = time.perf_counter()
    row = workspace.write_case(source, volume, window, label, digest, dependencies)
    return ChunkReport(source.case_id, row.n_slices, read_s=read_s, write_s=time.perf_counter() - started)


def _refused(source: CaseSource, reason: str, message: str) -> ChunkReport:
    return ChunkReport(source.case_id, 0, quarantined=(Quarantined(source.name, reason, message, source.patient),))


@task(name="ingest", **STAGE_TASK)
def ingest(run: Run, labelled_only: bool = False, needs_labels: bool = True) -> Manifest:
    """Ingest every case that the settings name and write the manifest.

    Args:
        run: the run.
        labelled_only: leave images without a label alone.
        needs_labels: without any labelled case there is nothing to do.

    Returns:
        The manifest of the usable cases.

    Raises:
        InputError: nothing to do: no image, no usable label.
        TooManyQuarantinedError: more of the input is unusable than the settings allow.
    """
    settings = run.settings
    with run.stage("ingest") as stage:
        found = discover(settings.images, settings.labels, settings.imaging)
        for entry in found.quarantined:
            run.events.emit(CaseQuarantined(entry.name, entry.reason, entry.message))
        units = [IngestUnit(source) for source in found.cases if source.label is not None or not labelled_only]
        reports = stage.run_chunks(partial(ingest_case, run.workspace.url, settings.imaging), units, unit="cases")
        quarantined = [*found.quarantined, *(entry for report in reports for entry in report.quarantined)]
        refused = {entry.name for entry in quarantined}
        kept = [unit.source for unit in units if unit.source.name not in refused]
        manifest = run.workspace.write_manifest(quarantined, [source.case_id for source in kept])
        stage.note = f"{len(kept)} cases, {len(quarantined)} set aside"
    _check(run, manifest, len(units) + len(found.quarantined), quarantined, needs_labels)
    return manifest


def _check(run: Run, manifest: Manifest, total: int, quarantined: list[Quarantined], needs_labels: bool) -> None:
    share = len(quarantined) / max(1, total)
    limit = run.settings.execution.max_quarantined_fraction
    listed = "; ".join(f"{entry.name}: {entry.message}" for entry in quarantined[:3])
    if share > limit:
        raise TooManyQuarantinedError(
            f"{len(quarantined)} of {total} inputs are unusable ({share:.0%}, allowed {limit:.0%}); first: {listed}. "
            "Mend or remove them, or raise execution.max_quarantined_fraction"
        )
    why = f" ({listed})" if quarantined else ""
    if manifest.cases.empty:
        raise InputError(f"no usable image is left among {total} inputs{why}; check {run.settings.images}")
    if needs_labels and not manifest.cases["labelled"].any():
        raise InputError(
            f"no usable labelled case is left among {total} inputs{why}; add label maps to {run.settings.labels}"
        )

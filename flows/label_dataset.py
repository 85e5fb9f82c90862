"""The main job: flow ``label_dataset``."""

from __future__ import annotations

import time

from prefect import flow

from flows.endings import completed, with_reasons
from flows.running import open_run
from flows.showing import quarantine_counts, show_end, show_start
from rfss_core.errors import GateError, InputError
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.quality import Split, refuse_leak, split_cases, split_patients, with_reviewed
from rfss_core.segmentation.factory import baseline_error
from rfss_core.settings import BASELINES, LabelSettings
from rfss_core.store import Manifest
from tasks.assess import assess
from tasks.drift import drift
from tasks.embed import embed
from tasks.index import build_index, with_patches
from tasks.ingest import ingest
from tasks.publish import publish
from tasks.quality import measure
from tasks.register import register
from tasks.segment import segment
from tasks.served import set_aside
from tasks.summary import Summary, last_summary
from tasks.tracking import check_tracking


@flow(name="label-dataset", validate_parameters=True, persist_result=False)
@with_reasons
def label_dataset(settings: LabelSettings) -> Summary:
    """Label every image that has no label, measure the quality on held-out patients, and register the data set.

    Stages: ingest -> embed -> index -> segment -> quality -> publish -> register. Each is one Prefect task; its chunks
    run on the executor that the settings name.

    Args:
        settings: Everything that the run depends on.

    Returns:
        What stands in ``summary.json``.

    Raises:
        SettingsError: a segmenter that is only there to be measured.
        InputError: input that cannot be used at all.
        ExecutionError: chunks failed for good; the run can be resumed.
        GateError: the quality gate failed; all is recorded, nothing promoted.
        RegistryError: the MLflow server does not answer, found before any work and again at its end.
        RegistryAccessError: it refuses the credentials.
    """
    started = time.perf_counter()
    if settings.segmentation.segmenter in BASELINES:
        raise baseline_error(settings.segmentation.segmenter)
    with open_run(settings) as run:
        check_tracking(run.workspace.files)
        show_start(run)
        before = last_summary(run.workspace)
        manifest = ingest(run)
        # What the user got wrong is said before the models start.
        _plan(manifest, settings)
        embeddings = embed(run, manifest)
        manifest = set_aside(run, manifest, embeddings.refused, embeddings.refused_ids)
        unlabelled, split = _plan(manifest, settings)
        index = build_index(run, manifest, embeddings, split)
        index = with_patches(run, index)
        masks = segment(run, manifest, embeddings, index, [*unlabelled, *index.held_out_cases])
        manifest = set_aside(run, manifest, masks.refused)
        assessment = assess(run, index, masks)
        quality = measure(run, manifest, index, masks, assessment)
        dataset = publish(run, manifest, embeddings, index, masks, quality)
        summary = register(run, manifest, embeddings, index, masks, quality, dataset, started)
        drifted = drift(run, masks, summary, before)
        show_end(run, summary, drifted)
    if summary.dataset.status == "rejected":
        raise GateError("; ".join(summary.gate))
    return completed(summary, quarantine_counts(manifest))


def _plan(manifest: Manifest, settings: LabelSettings) -> tuple[list[str], Split]:
    """Return the cases to label and the split of the labelled patients."""
    unlabelled: list[str] = manifest.cases.loc[~manifest.cases["labelled"], "case_id"].tolist()
    if not unlabelled:
        raise InputError(
            f"every usable image in '{settings.images}' has a label: nothing is left to label; "
            "add images, or measure quality with `rfss evaluate`"
        )
    labelled = manifest.cases[manifest.cases["labelled"]]
    reviewed = labelled["label_source"] == REVIEWED_SOURCE
    split = split_patients(labelled.loc[~reviewed, "patient"].tolist(), settings.held_out, settings.seed)
    split = with_reviewed(split, labelled.loc[reviewed, "patient"].tolist())
    held_out = labelled["patient"].isin(split.held_out) & ~reviewed
    # Quality, calibration and the gate are measured on those who are held out.
    refuse_leak(split_cases(labelled[labelled["patient"].isin(split.support)]), split_cases(labelled[held_out]))
    return unlabelled, split

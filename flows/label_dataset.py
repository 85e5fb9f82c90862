"""The main job: flow ``label_dataset``."""

from __future__ import annotations

import time

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.running import open_run
from rfss_core.errors import GateError, InputError
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.quality import Split, split_patients, with_reviewed
from rfss_core.segmentation.factory import baseline_error
from rfss_core.settings import BASELINES, LabelSettings
from rfss_core.store import Manifest
from tasks.assess import assess
from tasks.embed import embed
from tasks.index import build_index, with_patches
from tasks.ingest import ingest
from tasks.publish import publish
from tasks.quality import measure
from tasks.register import register
from tasks.segment import segment
from tasks.served import set_aside
from tasks.summary import Summary
from tasks.throughput import Throughput
from tasks.tracking import check_tracking


@flow(name="label-dataset", validate_parameters=True, persist_result=False)
def label_dataset(settings: LabelSettings) -> Summary:
    """Label every image that has no label, measure the quality on held-out patients, and register the data set.

    Stages: ingest -> embed -> index -> segment -> quality -> publish -> register. Each is one Prefect task; its chunks
    run on the executor that the settings name.

    Args:
        settings: everything that the run depends on.

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
    _show(summary, run.throughput)
    if summary.dataset.status == "rejected":
        raise GateError("; ".join(summary.gate))
    return summary


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
    return unlabelled, with_reviewed(split, labelled.loc[reviewed, "patient"].tolist())


def _show(summary: Summary, throughput: Throughput) -> None:
    """Put the figures into the Prefect UI."""
    create_table_artifact(throughput.table(), key="rfss-stages", description="Work of each stage in this run")
    rows = [
        {
            "class": name,
            "Dice": dice.mean,
            "low": dice.ci_low,
            "high": dice.ci_high,
            "patients": dice.n,
            "HD95 mm": summary.held_out_hd95[name].mean,
            "label fusion": summary.label_fusion_dice[name].mean,
        }
        for name, dice in summary.held_out_dice.items()
    ]
    create_table_artifact(rows, key="rfss-held-out", description="Quality on held-out patients")
    cases = summary.cases
    create_markdown_artifact(
        f"# {summary.dataset.name}: {summary.dataset.status}\n\n"
        f"{cases.unlabelled} cases labelled from {cases.support} labelled ones, {cases.held_out} held out, "
        f"{cases.quarantined} set aside; {summary.slices} slices.\n\n"
        + "".join(f"- {line}\n" for line in [*summary.gate, *summary.warnings])
        + f"\nReport: `{summary.report}`, MLflow run `{summary.mlflow_run_id}`, "
        f"fingerprint `{summary.fingerprint[:12]}`",
        key="rfss-summary",
        description="Summary of the run",
    )

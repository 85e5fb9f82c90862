"""Stage register: the run, its figures, its report and its data set in MLflow; then the summary."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from prefect import task

from rfss_core.code import code_version
from rfss_core.datasets import DatasetManifest
from rfss_core.datasets.card import CARD, student_text, with_student
from rfss_core.datasets.origin import LATEST
from rfss_core.errors import TooFewSupportsError
from rfss_core.events import DatasetRegistered
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.quality import METRICS_LIBRARY
from rfss_core.store import Manifest
from tasks.card import card_of
from tasks.dataset_run import ARTIFACTS, DatasetRecord, register_dataset
from tasks.embed import Embeddings
from tasks.environment import environment_files
from tasks.index import SupportIndex
from tasks.mlflow_data import SupportSource
from tasks.promotion import promote_by_policy
from tasks.quality_files import FOLDER as QUALITY
from tasks.quality_outcome import QualityOutcome
from tasks.queue import review_queue
from tasks.report import write_run_report
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.segment import Masks
from tasks.sources import describe_changes, remember_sources, source_changes
from tasks.summary import (
    SUMMARY,
    UNTRAINED,
    CasesPart,
    DatasetPart,
    DecisionsPart,
    IndexPart,
    IntervalPart,
    ModelPart,
    QualityPredictionPart,
    SignalPart,
    Summary,
    jsonable,
    write_summary,
)
from tasks.tracking import metric_name


@task(name="register", **STAGE_TASK)
def register(
    run: Run,
    manifest: Manifest,
    embeddings: Embeddings,
    index: SupportIndex,
    masks: Masks,
    quality: QualityOutcome,
    dataset: DatasetManifest,
    started: float,
) -> Summary:
    """Write the report, record everything in MLflow, promote an accepted data set, and write ``summary.json``.

    Args:
        run: the run.
        manifest: all cases.
        embeddings: the slices' embeddings.
        index: the support set.
        masks: the pseudo-labels.
        quality: what is known about them.
        dataset: the published data set.
        started: ``time.perf_counter()`` at the run's begin.

    Raises:
        SettingsError: the workspace is an object store and ``MLFLOW_TRACKING_URI`` is not set.
    """
    files = run.workspace.files
    folder = files.read_bytes(LATEST).decode().strip()
    with run.stage("register") as stage:
        stage.started(1, unit="data set")
        summary = summarise_run(run, manifest, embeddings, index, masks, quality, dataset)
        queue = review_queue(run, manifest, embeddings, index, dataset)
        queue.write(run.workspace)
        write_run_report(run, manifest, index, masks, quality, summary, queue)
        write_summary(run.workspace, summary)
        card = f"{folder}/{CARD}"
        text = _write_card(run, card, _card(run, manifest, index, dataset, summary))
        registration = register_dataset(
            DatasetRecord(
                name=dataset.name,
                digest=dataset.digest,
                status=summary.dataset.status,
                fingerprint=summary.fingerprint,
                address=dataset.folder,
                params=_params(run, index, embeddings, masks),
                metrics=_metrics(summary) | _index_metrics(index) | run.throughput.metrics(),
                artifacts={
                    ARTIFACTS: [f"{folder}/manifest.json", f"{folder}/manifest.parquet", card],
                    "manifest": [f"manifest/{name}.parquet" for name in ("cases", "slices", "quarantine")],
                    "report": ["report/index.html"],
                    "report/overlays": [f"report/overlays/{name}" for name in files.names("report/overlays")],
                    "summary": [SUMMARY],
                    "quality": [f"{QUALITY}/{name}" for name in files.names(QUALITY)],
                },
                texts=environment_files(),
                profile={
                    "cases": len(dataset.entries),
                    **dataset.decisions,
                    "dice": summary.held_out_dice["mean"].mean,
                },
                tags=_version_tags(index, dataset, summary),
                support=SupportSource(run.workspace.url, index.key),
                support_digest=index.digest,
                description=text,
            ),
            files,
        )
        promotion = promote_by_policy(registration.registry, registration.version, run.settings.promotion)
        stage.finished(ChunkReport("data set", 0))
        champion = "" if promotion is None else ", champion"
        stage.note = f"version {registration.version.version}, {summary.dataset.status}{champion}"
    summary.dataset.version = registration.version.version
    summary.mlflow_run_id = registration.version.run_id
    summary.seconds = {**run.seconds, "total": time.perf_counter() - started}
    write_summary(run.workspace, summary)
    remember_sources(run.workspace, manifest)
    made = summary.dataset
    run.events.emit(DatasetRegistered(made.name, made.version, made.status, summary.fingerprint, summary.mlflow_run_id))
    return summary


def summarise_run(
    run: Run,
    manifest: Manifest,
    embeddings: Embeddings,
    index: SupportIndex,
    masks: Masks,
    quality: QualityOutcome,
    dataset: DatasetManifest,
) -> Summary:
    """Gather what the run did into the form of ``summary.json``."""
    labelled = int(manifest.cases["labelled"].sum())
    changes = source_changes(run.workspace, manifest)
    prediction = quality.prediction
    return Summary(
        dataset=DatasetPart(
            name=dataset.name,
            version=None,
            digest=dataset.digest,
            status="accepted" if quality.gate.passed else "rejected",
        ),
        fingerprint=str(dataset.meta["fingerprint"]),
        preset=run.settings.preset,
        k=index.k,
        cases=CasesPart(
            labelled=labelled,
            support=len(index.support_cases),
            held_out=len(index.held_out_cases),
            unlabelled=len(manifest.cases) - labelled,
            quarantined=len(manifest.quarantine),
            reviewed=int((manifest.cases["label_source"] == REVIEWED_SOURCE).sum()),
        ),
        sources=changes,
        slices=int(manifest.cases["n_slices"].sum()),
        chunks=len(masks.units),
        held_out_dice=_intervals(quality.summary.dice),
        held_out_hd95=_intervals(quality.summary.hd95),
        held_out_metrics={name: _intervals(parts) for name, parts in quality.summary.more.items()},
        label_fusion_dice=_intervals(quality.fusion_summary.dice),
        index=_index_part(index),
        decisions=DecisionsPart(**dataset.decisions),
        quality_prediction=QualityPredictionPart(
            mae=jsonable(prediction.mae), spearman=jsonable(prediction.spearman), coverage=jsonable(prediction.coverage)
        ),
        slice_decisions=DecisionsPart(**quality.slice_counts),
        signals=[SignalPart(**row.to_json()) for row in quality.prediction.worth],
        gate=[*quality.gate.reasons, *quality.gate.advice],
        models={
            "embedding": ModelPart(name=embeddings.model, digest=embeddings.digest, trained=embeddings.trained),
            "segmentation": ModelPart(name=masks.model, digest=masks.digest, trained=masks.trained),
        },
        warnings=[*describe_changes(changes), *_warnings(manifest, embeddings, index, masks, quality)],
        seconds=dict(run.seconds),
        mlflow_run_id=None,
        report="report/index.html",
    )


def _warnings(
    manifest: Manifest, embeddings: Embeddings, index: SupportIndex, masks: Masks, quality: QualityOutcome
) -> list[str]:
    notes = []
    untrained = [model.model for model in (embeddings, masks) if not model.trained]
    if untrained:
        notes.append(
            f"{UNTRAINED}: {', '.join(untrained)} built from a fixed seed; these pseudo-labels only exercise the "
            "pipeline. Use a preset with trained models"
        )
    few = [case for case in masks.refused if case.reason == TooFewSupportsError.reason]
    if few:
        notes.append(
            f"{len(few)} cases were set aside because fewer than k = {index.k} support slices are left for them; "
            f"first: {few[0].name}: {few[0].message}"
        )
    failed = [*embeddings.refused, *(case for case in masks.refused if case not in few)]
    if failed:
        notes.append(
            f"{len(failed)} cases were set aside because the work failed on them; first: {failed[0].name} "
            f"({failed[0].reason}): {failed[0].message}. execution.retry_quarantined tries them again"
        )
    if masks.underserved:
        notes.append(
            f"{masks.underserved} cases have slices that fewer than k = {index.k} support slices served, "
            f"{masks.fewest} at least: the filter and their own patient leave no more"
        )
    ours, floor = quality.summary.dice["mean"].mean, quality.fusion_summary.dice["mean"].mean
    if ours is not None and floor is not None and ours < floor:
        notes.append(
            f"a plain vote of the retrieved masks does better on the held-out cases: Dice {floor:.3f} against "
            f"{ours:.3f}; consider --segmenter label-fusion or a larger preset"
        )
    if (manifest.cases["kind"] == "raster").any():
        notes.append("PNG, TIFF and JPEG files carry no spacing that is read: their HD95 is in pixels, not mm")
    if index.stored is not None and index.stored.warning:
        notes.append(index.stored.warning)
    if quality.prediction.note:
        notes.append(quality.prediction.note)
    return notes


def _index_part(index: SupportIndex) -> IndexPart:
    stored = index.stored
    if stored is None:
        return IndexPart()
    return IndexPart(
        kind=stored.kind, shards=stored.shards, recall=stored.recall, filtered_recall=stored.filtered_recall
    )


def _intervals(parts: dict[str, Any]) -> dict[str, IntervalPart]:
    return {
        name: IntervalPart(
            mean=jsonable(part.mean), ci_low=jsonable(part.ci_low), ci_high=jsonable(part.ci_high), n=part.n
        )
        for name, part in parts.items()
    }


def _params(run: Run, index: SupportIndex, embeddings: Embeddings, masks: Masks) -> dict[str, Any]:
    settings = run.settings.scientific()
    nested = {
        f"{group}.{name}": value
        for group, values in settings.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }
    return {
        **{name: value for name, value in settings.items() if not isinstance(value, dict)},
        **nested,
        "k": index.k,
        "support_slices": index.n_slices,
        "index_kind": index.stored.kind if index.stored else "flat",
        "index_generation": index.stored.generation if index.stored else None,
        "classes": dict(index.classes),
        "executor": run.executor.name,
        "embedding_model": embeddings.model,
        "embedding_digest": embeddings.digest,
        "segmentation_model": masks.model,
        "segmentation_digest": masks.digest,
        "metrics_library": METRICS_LIBRARY,
        "code": code_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _metrics(summary: Summary) -> dict[str, float]:
    values: dict[str, float | None] = {}
    for title, parts in (("dice", summary.held_out_dice), ("hd95", summary.held_out_hd95)):
        for name, part in parts.items():
            values[f"held_out_{title}.{name}"] = part.mean
            values[f"held_out_{title}.{name}.low"] = part.ci_low
            values[f"held_out_{title}.{name}.high"] = part.ci_high
    values["label_fusion_dice.mean"] = summary.label_fusion_dice["mean"].mean
    values |= {f"decisions.{name}": float(count) for name, count in summary.decisions.model_dump().items()}
    values |= {f"cases.{name}": float(count) for name, count in summary.cases.model_dump().items()}
    values |= {f"seconds.{stage}": seconds for stage, seconds in summary.seconds.items()}
    prediction = summary.quality_prediction.model_dump()
    values |= {f"quality_prediction.{name}": value for name, value in prediction.items()}
    return {metric_name(name): float(value) for name, value in values.items() if value is not None}


def _version_tags(index: SupportIndex, dataset: DatasetManifest, summary: Summary) -> dict[str, str]:
    """Return what listing, promotion and lineage ask of a version."""
    dice = summary.held_out_dice["mean"].mean
    return {
        "held_out_digest": index.held_out_digest,
        **({} if dice is None else {"held_out_dice": f"{dice:.6f}"}),
        **{f"cases.{decision}": str(count) for decision, count in dataset.decisions.items()},
    }


def _write_card(run: Run, path: str, text: str) -> str:
    """Write a data card and return it; what an earlier one of the same data set says of students stays."""
    files = run.workspace.files
    known = student_text(files.read_bytes(path).decode()) if files.exists(path) else None
    card = text if known is None else with_student(text, known)
    files.write_bytes(path, card.encode())
    return card


def _card(run: Run, manifest: Manifest, index: SupportIndex, dataset: DatasetManifest, summary: Summary) -> str:
    return card_of(
        summary,
        run.settings,
        dataset.classes,
        slices=sum(entry.slices for entry in dataset.entries),
        support=(index.n_slices, index.digest),
        rasters=bool((manifest.cases["kind"] == "raster").any()),
    )


def _index_metrics(index: SupportIndex) -> dict[str, float]:
    if index.stored is None:
        return {}
    return {"retrieval.recall": index.stored.recall, "retrieval.filtered_recall": index.stored.filtered_recall}

"""Measures label maps of networks trained elsewhere (networks_elsewhere.py) as ``rfss evaluate`` would."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from networks_bundle import Bundle, Job

from flows.session import command_session
from flows.study import place_of, prepare
from rfss_core.quality import METRICS_LIBRARY, CaseMeasurement, case_metrics, dice_by_third, summarise
from rfss_core.store import Manifest, Workspace
from rfss_core.store.files import Files
from rfss_core.study import CaseResult, Evaluation, PlannedRow, RowResult, StudySettings, plan_study
from rfss_core.study.check import split_of
from rfss_core.study.result import versions, write_row


def keep(bundle: Bundle, results: Path, out: str, command: str, *, other_code: bool) -> int:
    """Measure every label map of ``results`` and write it as a finished row of the studies in ``out``.

    Networks whose data or settings are no longer the study's are left out, and those that other code trained unless
    ``other_code``.

    Returns:
        0, or 1 where some were left out.
    """
    files = Files(out)
    study = StudySettings.model_validate(bundle.study)
    plan = plan_study(study, place_of(files))
    with command_session(place_of(files), verbose=False):
        checked = prepare(study, out)
    rows = {row.inputs_fingerprint(data): (row, data) for row, data in zip(plan.rows, checked.data, strict=True)}
    with np.load(results) as stored:
        about = json.loads(stored["about"].tobytes())
        labels = {int(place): stored[f"labels{place}"] for place in about}
    workspace = Workspace.open(place_of(files))
    manifest = Manifest.read(workspace.files)
    stale = 0
    for place, one in sorted((int(key), value) for key, value in about.items()):
        job = bundle.jobs[place]
        if job.inputs not in rows or (one.get("code") != rows[job.inputs][0].code and not other_code):
            stale += 1
            print(f"left out, the study or its code is another now: {job.label}, seed {job.seed}", file=sys.stderr)
            continue
        row, data = rows[job.inputs]
        evaluation = measured(bundle, job, one, labels[place], row, manifest, workspace)
        write_row(
            files,
            RowResult(
                fingerprint=row.fingerprint(data),
                label=row.label,
                seed=row.seed,
                command=command,
                settings=row.config() if row.extra else "",
                evaluation=evaluation,
                versions={**versions(), "torch": one["torch"]},
                device=one["device"],
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )
        print(f"{row.label}, seed {row.seed}: {evaluation.dice['mean']:.3f}")
    return 1 if stale else 0


def measured(
    bundle: Bundle,
    job: Job,
    about: dict[str, Any],
    labels: npt.NDArray[np.uint8],
    row: PlannedRow,
    manifest: Manifest,
    workspace: Workspace,
) -> Evaluation:
    """Return the figures of one network."""
    settings = row.settings
    split = split_of(row, manifest.cases.loc[manifest.cases["labelled"], "patient"].tolist())
    patients = dict(zip(manifest.cases["case_id"], manifest.cases["patient"], strict=True))
    volumes: dict[str, list[npt.NDArray[np.uint8]]] = {}
    start = 0
    for place in job.test:
        height, width = (int(side) for side in bundle.arrays["shapes"][place])
        plane = labels[start : start + height * width].reshape(height, width)
        volumes.setdefault(bundle.ids[place].rsplit(":", 1)[0], []).append(plane)
        start += height * width
    measurements, thirds = [], {}
    for case_id, planes in volumes.items():
        assert patients[case_id] in split.held_out
        case, found = workspace.case(case_id), np.stack(planes)
        truth = case.read_labels()
        metrics = case_metrics(found, truth, bundle.classes, case.spacing, settings.quality.surface_tolerance)
        measurements.append(CaseMeasurement(case_id, patients[case_id], tuple(metrics)))
        thirds[case_id] = dice_by_third(found, truth, bundle.classes)
    summary = summarise(measurements, bundle.classes, settings.quality, settings.seed)
    return Evaluation(
        dice={name: part.mean for name, part in summary.dice.items()},
        hd95={name: part.mean for name, part in summary.hd95.items()},
        per_case=[
            CaseResult(
                case=one.case,
                patient=one.patient,
                dice={metric.name: metric.dice for metric in one.metrics},
                hd95={metric.name: metric.hd95 for metric in one.metrics},
                dice_by_third=thirds[one.case],
            )
            for one in measurements
        ],
        label_fusion_dice={},
        slices_per_second=len(job.test) / about["segment_seconds"],
        segmented_now=len(job.test),
        processor_seconds=None,
        seconds={"train": about["train_seconds"], "segment": about["segment_seconds"]},
        preset=settings.preset,
        k=settings.k or 1,
        strategy=settings.retrieval.strategy,
        segmenter=settings.segmentation.segmenter,
        points=None,
        seed=settings.seed,
        support_slices=len(job.support),
        support_patients=len({bundle.patients[place] for place in job.support}),
        test_patients=len(split.held_out),
        support_patient_names=sorted({bundle.patients[place] for place in job.support}),
        refused=0,
        models={"segmentation": about["weights"]},
        metrics=METRICS_LIBRARY,
        code=about.get("code", "unknown"),
    )

"""Stage quality: summarise the held-out cases, predict the others, judge the data set."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import numpy.typing as npt
from prefect import task

from rfss_core.events import QualityMeasured
from rfss_core.quality import (
    Decision,
    Gate,
    GateEvidence,
    acceptance_curve,
    decide,
    summarise,
)
from rfss_core.quality.tables import SignalTable, predict_cases, predict_classes, predict_slices
from rfss_core.store import Manifest
from tasks.assess import Assessment, read_labels
from tasks.index import SupportIndex
from tasks.quality_files import write_quality
from tasks.quality_outcome import QualityOutcome
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.segment import STAGE as SEGMENT_STAGE
from tasks.segment import Masks


@task(name="quality", **STAGE_TASK)
def measure(run: Run, manifest: Manifest, index: SupportIndex, masks: Masks, assessment: Assessment) -> QualityOutcome:
    """Summarise the held-out cases; calibrate and apply the quality prediction; judge the data set."""
    settings, seed = run.settings.quality, run.settings.seed
    classes = dict(index.classes)
    patients = dict(zip(manifest.cases["case_id"], manifest.cases["patient"], strict=True))
    with run.stage("quality") as stage:
        stage.started(1, unit="data set")
        measured = assessment.measurements(run, patients)
        summary = summarise(measured["labels"], classes, settings, seed)
        new = [case_id for case_id, _, is_held_out in masks.cases() if not is_held_out]
        table = SignalTable(assessment.signals(run), measured["labels"], new)
        prediction = predict_cases(table, settings)
        slice_prediction, slices = predict_slices(table, settings)
        refused = set(manifest.quarantine["name"])
        known = refused | set(manifest.cases["name"])
        gate = Gate(settings).judge(
            summary,
            measured["labels"],
            # Its advice names cases by their ids: it reaches logs and Prefect's states.
            GateEvidence(prediction, len(refused) / len(known)),
        )
        outcome = QualityOutcome(
            measured["labels"],
            summary,
            summarise(measured["fusion"], classes, settings, seed),
            prediction,
            {case: decide(found, prediction.lower[case], settings) for case, found in prediction.predicted.items()},
            gate,
            predict_classes(table, classes, settings),
            slices,
            slice_prediction,
            acceptance_curve(prediction.points, settings),
            assessment.voxels(run),
        )
        write_quality(run, outcome)
        stage.finished(ChunkReport("data set", 0))
        stage.note = f"gate {'passed' if gate.passed else 'failed'}"
    run.events.emit(_event(outcome))
    return outcome


def _event(outcome: QualityOutcome) -> QualityMeasured:
    counts = Counter(outcome.decisions.values())
    return QualityMeasured(
        {name: interval.mean for name, interval in outcome.summary.dice.items()},
        {name: interval.ci_low for name, interval in outcome.summary.dice.items()},
        {name: counts[name] for name in get_args(Decision)},
        tuple(value for value in outcome.prediction.predicted.values() if value is not None),
        outcome.gate.passed,
    )


def read_mask(run: Run, masks: Masks, chunk: str, case_id: str, name: str) -> npt.NDArray[np.uint8]:
    """Return a stored map of one case, [Z, H, W]: see :func:`tasks.assess.read_labels`."""
    return read_labels(run.workspace.stage(SEGMENT_STAGE, masks.key), chunk, case_id, name)

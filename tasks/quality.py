"""Stage quality: measure the held-out cases, predict the others, judge the data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.quality import (
    CalibrationCase,
    CaseMeasurement,
    Decision,
    Gate,
    GateResult,
    QualityPrediction,
    QualitySummary,
    case_metrics,
    decide,
    predict_quality,
    summarise,
)
from rfss_core.store import Manifest
from tasks.index import SupportIndex
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.segment import STAGE as SEGMENT_STAGE
from tasks.segment import Masks


@dataclass(frozen=True)
class QualityOutcome:
    """What is known about the pseudo-labels' quality. Cases are named by their ids."""

    measurements: tuple[CaseMeasurement, ...]
    summary: QualitySummary
    fusion_summary: QualitySummary
    """The same held-out cases labelled by majority vote of the retrieved masks."""
    prediction: QualityPrediction
    decisions: dict[str, Decision]
    gate: GateResult


@task(name="quality", **STAGE_TASK)
def measure(run: Run, manifest: Manifest, index: SupportIndex, masks: Masks) -> QualityOutcome:
    """Compare the held-out cases with their labels; calibrate and apply the quality prediction; judge the data set."""
    settings = run.settings.quality
    classes = dict(index.classes)
    patients = dict(zip(manifest.cases["case_id"], manifest.cases["patient"], strict=True))
    signals = _signals(run, masks)
    with run.stage("quality") as stage:
        held_out = [(case_id, chunk) for case_id, chunk, is_held_out in masks.cases() if is_held_out]
        stage.started(len(held_out), unit="held-out cases")
        measured: list[CaseMeasurement] = []
        fused: list[CaseMeasurement] = []
        for case_id, chunk in held_out:
            case = run.workspace.case(case_id)
            truth = case.read_labels()
            for name, into in (("labels", measured), ("fusion", fused)):
                found = read_mask(run, masks, chunk, case_id, name)
                metrics = tuple(case_metrics(found, truth, classes, case.spacing))
                into.append(CaseMeasurement(case_id, patients[case_id], metrics))
            stage.finished(ChunkReport(case_id, case.n_slices))
        summary = summarise(measured, classes, settings, run.settings.seed)
        fusion_summary = summarise(fused, classes, settings, run.settings.seed)
        prediction = predict_quality(
            [CalibrationCase(m.case, m.patient, signals[m.case], m.dice) for m in measured],
            {case_id: signals[case_id] for case_id, _, is_held_out in masks.cases() if not is_held_out},
            settings,
        )
        decisions = {
            case_id: decide(predicted, prediction.lower[case_id], settings)
            for case_id, predicted in prediction.predicted.items()
        }
        gate = Gate(settings).judge(summary, measured)
        stage.note = f"gate {'passed' if gate.passed else 'failed'}"
    return QualityOutcome(tuple(measured), summary, fusion_summary, prediction, decisions, gate)


def read_mask(run: Run, masks: Masks, chunk: str, case_id: str, name: str) -> npt.NDArray[np.uint8]:
    """Return a stored label map of one case, [Z, H, W]: ``labels`` or, for held-out cases, ``fusion``."""
    stored = run.workspace.stage(SEGMENT_STAGE, masks.key).read_array(chunk, f"{case_id}/{name}")
    return np.asarray(stored, dtype=np.uint8)


def _signals(run: Run, masks: Masks) -> dict[str, dict[str, float]]:
    store = run.workspace.stage(SEGMENT_STAGE, masks.key)
    tables = [store.read_table(unit.id, "cases") for unit in masks.units]
    rows = pd.concat(tables, ignore_index=True).set_index("case_id") if tables else pd.DataFrame()
    return {str(case_id): {str(k): float(v) for k, v in row.items()} for case_id, row in rows.iterrows()}

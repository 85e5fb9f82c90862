"""A report's content with everything in it, and names that would like to be markup."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from rfss_core.quality import (
    CalibrationCase,
    CaseMeasurement,
    Comparison,
    Gate,
    ModelFact,
    Picture,
    QuarantineRow,
    QueueRow,
    ReportContent,
    acceptance_curve,
    case_metrics,
    decide,
    largest_slice,
    predict_quality,
    summarise,
    typical_cases,
)
from rfss_core.settings import LabelSettings, QualitySettings

EVIL = "<script>alert('x')</script>"
CLASSES = {1: "RV & <b>Myo</b>", 2: "$LV_{心}$"}


def content(**changes: Any) -> ReportContent:
    return replace(_whole(), **changes)


@cache
def _whole() -> ReportContent:
    rng = np.random.default_rng(0)
    settings = QualitySettings(bootstrap=200)
    measurements, calibration, pictures = [], [], []
    for number in range(12):
        truth = np.zeros((3, 24, 20), np.uint8)
        truth[:, 5:18, 4:16] = 1
        truth[1:, 8:14, 8:12] = 2
        prediction = np.roll(truth, number % 5, axis=1)
        metrics = case_metrics(prediction, truth, CLASSES, (5, 1, 1))
        measurement = CaseMeasurement(f"id{number}", f"patient{number}", tuple(metrics))
        measurements.append(measurement)
        signals = {"predicted_iou": measurement.dice + rng.normal(0, 0.02), "foreground_fraction": 0.2}
        calibration.append(CalibrationCase(measurement.case, measurement.patient, signals, measurement.dice))
        z = largest_slice(truth)
        pictures.append(Picture(rng.random((24, 20)), f"slice {z} of id{number}", prediction[z], truth[z], (1.0, 1.5)))
    prediction_of = predict_quality(calibration, {f"new{c.case}": c.signals for c in calibration}, settings)
    summary = summarise(measurements, CLASSES, settings, 0)
    support = Picture(rng.random((24, 20, 3)), f"support {EVIL}", truth=pictures[0].truth)
    return ReportContent(
        dataset="hearts", version="4", digest="d" * 64, fingerprint="f" * 64, preset="tiny", k=8, classes=CLASSES,
        counts={"labelled": 30, "held_out": 12, "unlabelled": 12, "quarantined": 1}, settings=settings,
        gate=Gate(settings).judge(summary, measurements), summary=summary, measurements=measurements,
        prediction=prediction_of,
        decisions={n: decide(p, prediction_of.lower[n], settings) for n, p in prediction_of.predicted.items()},
        queue=[
            QueueRow(name, decide(found, prediction_of.lower[name], settings), found, prediction_of.lower[name],
                     0.01 - 0.001 * number, f"why {EVIL}", pictures[number] if number < 1 else None)
            for number, (name, found) in enumerate(prediction_of.predicted.items())
        ],
        acceptance=acceptance_curve(prediction_of.points, settings),
        by_class=dict.fromkeys(CLASSES.values(), prediction_of),
        review_command="rfss review export work --out review",
        names={"newid0": f"case {EVIL}", "id0": f"held out {EVIL}"}, fusion=summary,
        comparisons=[
            Comparison(rank, m, pictures[int(m.case[2:])], pictures[0] if rank == "worst" else None, [support, support])
            for rank, m in typical_cases(measurements)
        ],
        unlabelled=[replace(pictures[0], truth=None, caption=f"new {EVIL}")],
        quarantine=[QuarantineRow(f"broken {EVIL}.nii.gz", "truncated", "ends early; copy it again")],
        models=[ModelFact("embedding", "embedded:dinov2-tiny", "1" * 64, trained=True),
                ModelFact("segmentation", "embedded:sam2-tiny", "2" * 64, trained=False)],
        parameters=LabelSettings(images=EVIL, labels="b", workspace="w").model_dump(mode="json"),
        versions={"rfss": "0.1.0"}, seconds={"ingest": 3.0, "segment": 400.0, "total": 7300.0},
        warnings=[f"careful {EVIL}"], created="today",
    )  # fmt: skip

"""Predictions of cases, classes and slices from one table of signals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from rfss_core.quality.decision import decide
from rfss_core.quality.metrics import ClassMetric
from rfss_core.quality.prediction import CalibrationCase, QualityPrediction, predict_quality
from rfss_core.quality.signals import SIGNALS
from rfss_core.quality.summary import CaseMeasurement
from rfss_core.settings import QualitySettings

WHOLE = -1
"""Slice number of rows about a whole case."""
ALL_CLASSES = 0
"""Class of rows about all classes together."""

SLICES_A_PATIENT = 24
"""Slices of one calibration patient that take part, evenly spread; more add time, hardly knowledge."""

SLICE_COLUMNS = ("case_id", "slice", "predicted", "lower", "decision")


@dataclass(frozen=True)
class SignalTable:
    """Signals of held-out and new cases, beside what is known of the held-out ones."""

    signals: pd.DataFrame
    """case_id, slice (-1: whole case), class (0: all), and one column a signal."""
    measured: Sequence[CaseMeasurement]
    """The held-out cases."""
    new: Sequence[str]
    """Cases to predict."""

    def rows(self, value: int) -> dict[str, dict[str, float]]:
        """Return the signals of whole cases, of one class or (0) of all, by case."""
        if self.signals.empty:
            return {}
        chosen = self.signals[(self.signals["slice"] == WHOLE) & (self.signals["class"] == value)]
        return {str(row["case_id"]): _signals(row) for row in chosen.to_dict(orient="records")}

    def slices(self, cases: set[str]) -> dict[tuple[str, int], dict[str, float]]:
        """Return the signals of the slices of some cases, in order."""
        if self.signals.empty:
            return {}
        chosen = self.signals[(self.signals["slice"] != WHOLE) & self.signals["case_id"].isin(cases)]
        ordered = chosen.sort_values(["case_id", "slice"]).to_dict(orient="records")
        return {(str(row["case_id"]), int(row["slice"])): _signals(row) for row in ordered}


def predict_cases(table: SignalTable, settings: QualitySettings) -> QualityPrediction:
    """Predict the mean Dice over classes of each new case; see :func:`predict_quality`.

    Args:
        table: signals and measurements.
        settings: confidence.
    """
    signals = table.rows(ALL_CLASSES)
    calibration = [CalibrationCase(m.case, m.patient, signals[m.case], m.dice) for m in table.measured]
    return predict_quality(calibration, {case: signals[case] for case in table.new}, settings)


def predict_classes(
    table: SignalTable, classes: Mapping[int, str], settings: QualitySettings
) -> dict[str, QualityPrediction]:
    """Predict the Dice of each class of each new case, from the class's own signals.

    A case whose pseudo-label lacks the class gets no prediction for it.

    Args:
        table: signals and measurements.
        classes: label value to name.
        settings: confidence.

    Returns:
        One prediction a class, by name.
    """
    found = {}
    for value in sorted(classes):
        signals = table.rows(value)
        calibration = [
            CalibrationCase(m.case, m.patient, signals[m.case], metric.dice)
            for m in table.measured
            for metric in m.metrics
            if metric.value == value
        ]
        new = {case: signals[case] for case in table.new}
        found[classes[value]] = predict_quality(calibration, new, settings, with_worth=False)
    return found


def predict_slices(table: SignalTable, settings: QualitySettings) -> tuple[QualityPrediction, pd.DataFrame]:
    """Predict the Dice of each slice of each new case, and decide on it.

    A slice's Dice is the mean over the classes that truth or pseudo-label shows. Slices of one patient are no
    independent trials: folds and weights are the patients', as for cases.

    Args:
        table: signals and measurements with slices.
        settings: confidence and thresholds.

    Returns:
        How well it works (no slices are named in it), and a table with columns ``case_id``, ``slice``, ``predicted``,
        ``lower``, ``decision``. Slices with an empty pseudo-label have none of the three: there is no mask to judge.
    """
    calibration = _calibration_slices(table)
    signals = table.slices(set(table.new))
    name = {f"{case}:{z}": (case, z) for case, z in signals}
    found = predict_quality(
        calibration,
        {key: signals[place] for key, place in name.items()},
        settings,
        with_worth=False,
    )
    rows = []
    for key, (case, z) in name.items():
        predicted, lower = found.predicted[key], found.lower[key]
        empty = signals[case, z]["foreground_fraction"] == 0
        rows.append((case, z, predicted, lower, None if empty else decide(predicted, lower, settings)))
    frame = pd.DataFrame(rows, columns=list(SLICE_COLUMNS))
    return replace(found, predicted={}, lower={}, points=()), frame


def slice_dice(metrics: Sequence[ClassMetric]) -> float | None:
    """Return a slice's Dice, the mean over classes that truth or pseudo-label shows; None where neither shows any.

    Args:
        metrics: one a class.
    """
    shown = [metric.dice for metric in metrics if metric.presence != "both_empty"]
    return float(np.mean(shown)) if shown else None


def _calibration_slices(table: SignalTable) -> list[CalibrationCase]:
    signals = table.slices({measurement.case for measurement in table.measured})
    by_patient: dict[str, list[CalibrationCase]] = {}
    for measurement in table.measured:
        for z, metrics in enumerate(measurement.slices):
            dice, own = slice_dice(metrics), signals[measurement.case, z]
            if dice is not None and own["foreground_fraction"] > 0:
                one = CalibrationCase(f"{measurement.case}:{z}", measurement.patient, own, dice)
                by_patient.setdefault(measurement.patient, []).append(one)
    chosen = []
    for cases in by_patient.values():
        count = min(len(cases), SLICES_A_PATIENT)
        chosen += [cases[int((step + 0.5) * len(cases) / count)] for step in range(count)]
    return chosen


def _signals(row: Mapping[Hashable, Any]) -> dict[str, float]:
    return {name: float(row[name]) for name in SIGNALS if name in row}

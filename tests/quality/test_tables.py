from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from rfss_core.quality import CaseMeasurement, ClassMetric
from rfss_core.quality.metrics import Presence
from rfss_core.quality.tables import SignalTable, predict_cases, predict_classes, predict_slices
from rfss_core.settings import QualitySettings

CLASSES = {1: "RV", 2: "LV"}
SETTINGS = QualitySettings(bootstrap=100)


def metric(value: int, dice: float, presence: Presence = "both") -> ClassMetric:
    return ClassMetric(value, CLASSES[value], dice, 1.0, presence)


def table(patients: int = 14, new: int = 4) -> SignalTable:
    """Signals that know the Dice; class LV is never in a truth, and each last slice is empty."""
    rng = np.random.default_rng(0)
    rows, measured = [], []
    for number in range(patients + new):
        case, level = f"c{number:02d}", rng.uniform(0.3, 0.9)
        dice = np.clip(level + rng.normal(0, 0.05, 4), 0, 1)
        rows.append({"case_id": case, "slice": -1, "class": 0, "stability": level, "foreground_fraction": 0.2})
        rows += [
            {"case_id": case, "slice": -1, "class": value, "stability": level, "foreground_fraction": (2 - value) * 0.2}
            for value in CLASSES
        ]
        rows += [
            {"case_id": case, "slice": z, "class": 0, "stability": dice[z], "foreground_fraction": 0.2 * (z < 3)}
            for z in range(4)
        ]
        if number < patients:
            slices = tuple((metric(1, dice[z]), metric(2, 1.0, "both_empty")) for z in range(4))
            measured.append(CaseMeasurement(case, f"p{number}", (metric(1, level), metric(2, level)), slices))
    return SignalTable(pd.DataFrame(rows), measured, [f"c{number:02d}" for number in range(patients, patients + new)])


def test_cases_classes_and_slices_are_predicted_from_their_own_rows() -> None:
    signals = table()
    cases = predict_cases(signals, SETTINGS)
    assert cases.spearman is not None
    assert cases.spearman > 0.9
    assert set(cases.predicted) == set(signals.new)
    classes = predict_classes(signals, CLASSES, SETTINGS)
    assert None not in classes["RV"].predicted.values()
    # A pseudo-label without the class says nothing about how well the class is found.
    assert set(classes["LV"].predicted.values()) == {None}
    assert "too few" in classes["LV"].note
    quality, slices = predict_slices(signals, SETTINGS)
    assert quality.spearman is not None
    assert quality.spearman > 0.9
    assert quality.patients == 14
    assert len(slices) == 16
    assert slices[slices["slice"] == 3]["decision"].isna().all()
    judged = slices[slices["slice"] < 3]
    assert set(judged["decision"]) <= {"accept", "review", "reject"}
    assert (judged["lower"] <= judged["predicted"]).all()
    assert all(a <= b for a, b in pairwise(slices["case_id"]))


def test_fewer_than_five_held_out_patients_predict_nothing_anywhere() -> None:
    signals = table(patients=4)
    quality, slices = predict_slices(signals, SETTINGS)
    assert "at least 5" in predict_cases(signals, SETTINGS).note
    assert "at least 5" in quality.note
    assert set(slices[slices["slice"] < 3]["decision"]) == {"review"}


def test_nothing_labelled_or_nothing_held_out_is_no_error() -> None:
    nothing = SignalTable(pd.DataFrame(), [], [])
    assert predict_cases(nothing, SETTINGS).predicted == {}
    assert predict_slices(nothing, SETTINGS)[1].empty

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import InputError
from rfss_core.quality import CalibrationCase, QualityPrediction, acceptance_curve, decide, predict_quality
from rfss_core.settings import QualitySettings

SETTINGS = QualitySettings()


def cohort(
    rng: np.random.Generator, patients: int, each: int, prefix: str, worth: float = 1.0
) -> list[CalibrationCase]:
    """Cases whose signals know their Dice, more or less; ``worth=0`` makes the signals noise."""
    cases = []
    for patient in range(patients):
        level = rng.normal(0.75, 0.08)
        for number in range(each):
            dice = float(np.clip(level + rng.normal(0, 0.08), 0, 1))
            known = worth * dice
            signals = {
                "predicted_iou": known + rng.normal(0, 0.06),
                "object_margin": 5 * known + rng.normal(0, 0.5),
                "nearest_distance": -known + rng.normal(0, 0.1),
                "mean_distance": rng.random(),
                "foreground_fraction": 0.1 + 0.01 * rng.random(),
                "slice_overlap": math.nan,
            }
            cases.append(CalibrationCase(f"{prefix}{patient}_{number}", f"{prefix}{patient}", signals, dice))
    return cases


def predict(calibration: list[CalibrationCase], new: list[CalibrationCase]) -> QualityPrediction:
    return predict_quality(calibration, {case.case: case.signals for case in new}, SETTINGS)


def test_it_beats_the_mean_and_the_bound_holds_on_new_patients() -> None:
    rng = np.random.default_rng(0)
    errors, baselines, covered = [], [], []
    for _ in range(6):
        calibration, new = cohort(rng, 18, 2, "c"), cohort(rng, 40, 1, "n")
        found = predict(calibration, new)
        assert found.mae is not None
        assert found.baseline_mae is not None
        assert found.spearman is not None
        assert found.coverage is not None
        assert found.mae < 0.75 * found.baseline_mae
        assert found.spearman > 0.6
        assert {row.name for row in found.worth} == set(calibration[0].signals) - {"slice_overlap"}
        # Those that know the Dice are worth more than those drawn at random.
        assert {row.name for row in found.worth[:3]} == {"predicted_iou", "object_margin", "nearest_distance"}
        assert 0.8 <= found.coverage <= 1
        assert found.note == ""
        mean = np.mean([case.dice for case in calibration])
        for case in new:
            point, bound = found.predicted[case.case], found.lower[case.case]
            assert point is not None
            assert bound is not None
            assert 0 <= bound <= point <= 1
            errors.append(abs(point - case.dice))
            baselines.append(abs(mean - case.dice))
            covered.append(case.dice >= bound)
    assert np.mean(errors) < 0.7 * np.mean(baselines)
    assert 0.85 <= np.mean(covered) <= 0.98


def test_worthless_signals_are_owned_up_to() -> None:
    rng = np.random.default_rng(1)
    found = predict(cohort(rng, 20, 2, "c", worth=0), cohort(rng, 30, 1, "n", worth=0))
    assert found.mae is not None
    assert found.baseline_mae is not None
    assert found.spearman is not None
    assert found.mae > 0.9 * found.baseline_mae
    assert found.spearman < 0.4


def test_nothing_leaks_between_the_cases_of_a_patient() -> None:
    # The planted leak: one signal names the patient, and Dice is the patient's own. Whoever validates by case sees
    # the patient's other cases and looks perfect; whoever validates by patient knows nothing.
    rng = np.random.default_rng(2)
    cases = []
    for patient in range(16):
        dice = float(rng.uniform(0.4, 0.95))
        for number in range(6):
            signals = {f"is{other}": float(other == patient) for other in range(16)}
            cases.append(CalibrationCase(f"{patient}_{number}", str(patient), signals, dice))
    found = predict(cases, [])
    assert found.mae is not None
    assert found.baseline_mae is not None
    assert found.mae > 0.9 * found.baseline_mae
    by_case = predict([CalibrationCase(c.case, c.case, c.signals, c.dice) for c in cases], [])
    assert by_case.mae is not None
    assert by_case.mae < 0.3 * found.mae


def test_changing_a_patients_dice_does_not_move_that_patients_own_prediction() -> None:
    rng = np.random.default_rng(3)
    cases = cohort(rng, 14, 2, "c")
    altered = [CalibrationCase(c.case, c.patient, c.signals, 0.01) if c.patient == "c3" else c for c in cases]
    before = {point.case: point for point in predict(cases, []).points}
    after = {point.case: point for point in predict(altered, []).points}
    for name, point in before.items():
        same = name.startswith("c3_")
        assert (after[name].predicted == pytest.approx(point.predicted, abs=1e-12)) == same
        if same:
            assert point.lower > 0
            assert after[name].lower == pytest.approx(point.lower, abs=1e-12)


@pytest.mark.parametrize("patients", [0, 1, 4])
def test_too_few_patients_predict_nothing(patients: int) -> None:
    rng = np.random.default_rng(4)
    new = cohort(rng, 3, 1, "n")
    found = predict(cohort(rng, patients, 5, "c"), new)
    assert found.to_json() == {"mae": None, "spearman": None, "coverage": None}
    assert set(found.predicted.values()) == set(found.lower.values()) == {None}
    assert set(found.predicted) == {case.case for case in new}
    assert f"{patients} held-out patients" in found.note
    assert {decide(found.predicted[name], found.lower[name], SETTINGS) for name in found.predicted} == {"review"}


def test_five_to_eight_patients_give_no_guarantee_at_90_percent() -> None:
    rng = np.random.default_rng(5)
    found = predict(cohort(rng, 8, 3, "c"), cohort(rng, 5, 1, "n"))
    assert set(found.lower.values()) == {0.0}
    assert "about 9 are needed" in found.note
    assert found.coverage is None
    found = predict(cohort(rng, 9, 3, "c"), cohort(rng, 5, 1, "n"))
    assert all(bound is not None and bound > 0 for bound in found.lower.values())
    # Of nine, eight are left when one is to be checked.
    assert found.coverage is None
    assert "how often it holds could not be measured" in found.note
    found = predict(cohort(rng, 10, 3, "c"), cohort(rng, 5, 1, "n"))
    assert found.coverage is not None
    assert found.note == ""


def test_no_variance_predicts_nothing() -> None:
    rng = np.random.default_rng(6)
    cases = cohort(rng, 6, 1, "c")
    flat = [CalibrationCase(c.case, c.patient, c.signals, 0.8) for c in cases]
    assert "same Dice" in predict(flat, cases).note
    mute = [CalibrationCase(c.case, c.patient, {"predicted_iou": math.nan}, c.dice) for c in cases]
    assert "no signal varies" in predict(mute, cases).note


def test_an_empty_pseudo_label_is_never_predicted() -> None:
    rng = np.random.default_rng(7)
    calibration = cohort(rng, 12, 1, "c")
    empty = {**calibration[0].signals, "foreground_fraction": 0.0, "predicted_iou": math.nan}
    found = predict_quality(calibration, {"empty": empty, "full": calibration[0].signals}, SETTINGS)
    assert found.predicted["empty"] is None
    assert found.lower["empty"] is None
    assert found.predicted["full"] is not None


def test_signals_far_outside_the_calibration_do_not_run_away() -> None:
    rng = np.random.default_rng(8)
    calibration = cohort(rng, 12, 1, "c")
    wild = {**calibration[0].signals, "predicted_iou": 1e6}
    best = {**calibration[0].signals, "predicted_iou": max(c.signals["predicted_iou"] for c in calibration)}
    found = predict_quality(calibration, {"wild": wild, "best": best}, SETTINGS)
    assert found.predicted["wild"] == found.predicted["best"]


def test_it_is_reproducible_in_any_order() -> None:
    rng = np.random.default_rng(9)
    calibration, new = cohort(rng, 10, 2, "c"), cohort(rng, 5, 1, "n")
    assert predict(calibration, new) == predict(calibration[::-1], new)


def test_an_impossible_dice_is_named() -> None:
    with pytest.raises(InputError, match=r"'x' is 1\.2"):
        predict([CalibrationCase("x", "p", {}, 1.2)], [])


@given(st.floats(0, 1), st.floats(0, 1))
def test_decisions_follow_the_thresholds(predicted: float, lower: float) -> None:
    decision = decide(predicted, lower, SETTINGS)
    assert (decision == "accept") == (lower >= SETTINGS.accept_dice)
    assert (decision == "reject") == (predicted < SETTINGS.reject_dice and lower < SETTINGS.accept_dice)


def test_accepting_more_cases_is_a_curve_down_to_all() -> None:
    rng = np.random.default_rng(10)
    points = predict(cohort(rng, 16, 2, "c"), []).points
    curve = acceptance_curve(points, SETTINGS)
    assert [point.accepted for point in curve] == sorted(point.accepted for point in curve)
    assert [point.least_lower for point in curve] == sorted((point.least_lower for point in curve), reverse=True)
    assert curve[-1].accepted == 1
    assert curve[-1].dice == pytest.approx(np.mean([point.dice for point in points]))
    assert max(point.dice for point in curve[: len(curve) // 3]) > curve[-1].dice
    assert acceptance_curve((), SETTINGS) == ()

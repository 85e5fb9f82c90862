from __future__ import annotations

from collections.abc import Sequence

import pytest

from rfss_core.quality import (
    CaseMeasurement,
    ClassMetric,
    Gate,
    GateEvidence,
    GateResult,
    QualityPrediction,
    QualitySummary,
    summarise,
)
from rfss_core.quality.metrics import Presence
from rfss_core.settings import QualitySettings

CLASSES = {1: "RV", 2: "LV"}
SETTINGS = QualitySettings(min_dice=0.75, bootstrap=200)


def case(number: int, *dice: float, presence: Sequence[Presence] = ("both", "both")) -> CaseMeasurement:
    metrics = tuple(
        ClassMetric(value, CLASSES[value], score, 2.0, where)
        for value, score, where in zip(CLASSES, dice, presence, strict=True)
    )
    return CaseMeasurement(f"case{number}", f"patient{number}", metrics)


def judge(cases: list[CaseMeasurement]) -> tuple[QualitySummary, GateResult]:
    summary = summarise(cases, CLASSES, SETTINGS, 0)
    return summary, Gate(SETTINGS).judge(summary, cases)


def test_the_threshold_itself_passes() -> None:
    _, verdict = judge([case(number, 0.5, 1.0) for number in range(6)])
    assert verdict.passed
    assert "0.750" in verdict.reasons[0]
    assert verdict.advice == ["Weakest class: RV (Dice 0.500). Label more slices that show it."]


def test_just_below_fails_and_says_what_to_do() -> None:
    summary, verdict = judge([case(number, 0.49, 1.0) for number in range(6)])
    assert not verdict.passed
    assert "is below 0.75" in verdict.reasons[0]
    assert "RV" in verdict.advice[0]
    assert "case0" in verdict.advice[1]
    assert summary.dice["mean"].mean == pytest.approx(0.745)
    assert summary.hd95["mean"].mean == pytest.approx(2.0)


def test_few_patients_are_said() -> None:
    _, verdict = judge([case(number, 0.9, 0.9) for number in range(4)])
    assert verdict.passed
    assert any("only 4 held-out patients" in reason for reason in verdict.reasons)
    _, verdict = judge([case(number, 0.9, 0.9) for number in range(5)])
    assert len(verdict.reasons) == 1


def test_a_class_that_no_truth_shows_is_not_measured() -> None:
    cases = [case(number, 0.6, 1.0, presence=("both", "both_empty")) for number in range(6)]
    summary, verdict = judge(cases)
    # Agreement on absence must not lift the mean over the gate.
    assert summary.dice["mean"].mean == pytest.approx(0.6)
    assert summary.dice["LV"].mean is None
    assert summary.dice["LV"].n == 0
    assert summary.unmeasured == ["LV"]
    assert not verdict.passed
    assert any("LV" in reason for reason in verdict.reasons)


def test_nothing_measured_fails() -> None:
    for cases in ([], [case(1, 1.0, 1.0, presence=("both_empty", "both_empty"))]):
        summary, verdict = judge(cases)
        assert not verdict.passed
        assert summary.dice["mean"].mean is None
        assert "no class could be measured" in verdict.reasons[0]


def test_patients_weigh_the_same_in_the_mean() -> None:
    one, two = case(1, 1.0, 1.0), case(2, 0.0, 0.0)
    summary, _ = judge([one, two, two, two])
    assert summary.dice["mean"].mean == pytest.approx(0.5)
    assert summary.patients == 2
    assert summary.cases == 4


def test_an_uncertain_pass_says_so() -> None:
    _, verdict = judge([case(number, score, score) for number, score in enumerate([0.6, 0.7, 0.8, 0.85, 0.9, 0.95])])
    assert verdict.passed
    assert any("not certain" in reason for reason in verdict.reasons)


def test_every_condition_fails_the_gate_alone() -> None:
    cases = [case(number, 0.75, 0.85 + 0.01 * (number % 3)) for number in range(12)]
    held = QualityPrediction(coverage=0.85, patients=12, predicted={"a": 0.4, "b": 0.9})
    for change, evidence, reason in [
        ({}, None, ""),
        ({}, GateEvidence(held, 0.4), ""),
        ({"min_dice": 0.9}, None, "is below 0.9"),
        ({"min_dice_low": 0.84}, None, "min_dice_low 0.84"),
        ({"min_class_dice": 0.8}, None, "mean Dice of class RV 0.750 is below min_class_dice 0.8"),
        ({}, GateEvidence(held, 0.6), "60% of the cases were set aside"),
        ({}, GateEvidence(QualityPrediction(coverage=0.5, patients=12)), "hold for 50% of the held-out patients"),
    ]:
        settings = SETTINGS.model_copy(update=change)
        verdict = Gate(settings).judge(summarise(cases, CLASSES, settings, 0), cases, evidence)
        assert verdict.passed == (reason == "")
        assert reason in verdict.reasons[0]


def test_a_failed_gate_says_what_to_label_next() -> None:
    cases = [case(number, 0.5, 0.9) for number in range(6)]
    found = QualityPrediction(predicted={"a": 0.7, "b": 0.4, "c": None}, patients=6)
    evidence = GateEvidence(found, names={"b": "sub-07"})
    verdict = Gate(SETTINGS).judge(summarise(cases, CLASSES, SETTINGS, 0), cases, evidence)
    assert not verdict.passed
    assert "Weakest class: RV" in verdict.advice[0]
    assert any(line.startswith("Lowest predicted Dice: sub-07 (0.40), a (0.70).") for line in verdict.advice)

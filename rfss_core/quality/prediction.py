"""Prediction of a pseudo-label's Dice from signals, calibrated on held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rfss_core.errors import InputError
from rfss_core.quality.bootstrap import FEW_PATIENTS
from rfss_core.quality.conformal import Calibration
from rfss_core.quality.regression import Floats
from rfss_core.quality.signals import FOREGROUND
from rfss_core.quality.worth import SignalWorth, signal_worth, spearman
from rfss_core.settings import QualitySettings


@dataclass(frozen=True)
class CalibrationCase:
    """A held-out case: signals and the Dice that its pseudo-label has."""

    case: str
    patient: str
    signals: Mapping[str, float]
    """Signals by name (see :func:`rfss_core.quality.signals.case_signals`)."""
    dice: float
    """Mean Dice over classes, 0 to 1."""


@dataclass(frozen=True)
class CalibrationPoint:
    """What the predictor says of a held-out case when that case's patient is left out."""

    case: str
    dice: float
    predicted: float
    lower: float


@dataclass(frozen=True)
class QualityPrediction:
    """Predicted Dice of unlabelled cases, and how far to trust it."""

    mae: float | None = None
    """Mean absolute error of predicted Dice, by cross-validation over patients; ``None`` without a predictor."""
    baseline_mae: float | None = None
    """The same for the mean Dice of the other patients: what a predictor must beat."""
    spearman: float | None = None
    """Spearman's rank correlation of predicted and true Dice; ``None`` where predictions do not vary."""
    coverage: float | None = None
    """Share of patients' cases whose true Dice reaches the lower bound, by cross-validation over patients; ``None``
    where so few are left that the cross-validated bounds are 0, which every Dice reaches."""
    predicted: dict[str, float | None] = field(default_factory=dict)
    """Predicted Dice of each unlabelled case; ``None`` where nothing can be said."""
    lower: dict[str, float | None] = field(default_factory=dict)
    """Lower bound on each case's Dice at the chosen confidence; ``None`` where nothing can be said."""
    points: tuple[CalibrationPoint, ...] = ()
    """Cross-validated predictions on held-out cases."""
    patients: int = 0
    """Number of calibration patients."""
    note: str = ""
    """Why there is no predictor, or what limits it; empty otherwise."""
    worth: tuple[SignalWorth, ...] = ()
    """What each signal contributes, the best alone first."""

    def to_json(self) -> dict[str, float | None]:
        """Return mae, spearman and coverage as plain JSON types."""
        return {"mae": self.mae, "spearman": self.spearman, "coverage": self.coverage}


def predict_quality(
    calibration: Sequence[CalibrationCase],
    unlabelled: Mapping[str, Mapping[str, float]],
    settings: QualitySettings,
    *,
    with_worth: bool = True,
) -> QualityPrediction:
    """Predict the Dice of unlabelled cases from signals, with a conformal lower bound.

    The regression (partial least squares, one component: regression.py) is cross-validated over patients: left out one
    by one, or in 20 folds of patients where there are more. Every error, correlation and coverage reported comes from
    patients that the regression did not see.

    The lower bound is CV+ over patients (conformal.py). It holds for patients who are exchangeable with the held-out
    ones. At confidence c it is trivial (0) below ``c / (1 - c)`` patients, that is 9 at 0.9.

    Empty pseudo-labels get no prediction: there is no mask to judge. They are left out of the calibration too.

    Args:
        calibration: held-out cases with their true Dice.
        unlabelled: signals of each unlabelled case, by case.
        settings: confidence of the lower bound.
        with_worth: measure each signal's own worth too.

    Returns:
        The prediction; without any (all values ``None``) when there are fewer than 5 calibration patients or nothing
        varies, with the reason in ``note``.

    Raises:
        InputError: a calibration Dice does not lie in 0 to 1.
    """
    for case in calibration:
        if not 0 <= case.dice <= 1:
            raise InputError(f"the Dice of calibration case '{case.case}' is {case.dice}; it must lie in 0 to 1")
    usable = sorted((case for case in calibration if _judgeable(case.signals)), key=lambda case: case.case)
    patients = len({case.patient for case in usable})
    names = _informative(usable)
    if note := _obstacle(usable, patients, names):
        nothing: dict[str, float | None] = dict.fromkeys(unlabelled)
        return QualityPrediction(predicted=nothing, lower=dict(nothing), patients=patients, note=note)

    features, dice = _matrix([case.signals for case in usable], names), np.array([case.dice for case in usable])
    calibrated = Calibration(features, dice, [case.patient for case in usable], 1 - settings.confidence)
    judged = [name for name, signals in unlabelled.items() if _judgeable(signals)]
    predicted: dict[str, float | None] = dict.fromkeys(unlabelled)
    lower: dict[str, float | None] = dict.fromkeys(unlabelled)
    if judged:
        queries = _matrix([unlabelled[name] for name in judged], names)
        point, bound = calibrated.predict(queries)
        predicted.update(zip(judged, point.tolist(), strict=True))
        lower.update(zip(judged, bound.tolist(), strict=True))

    out, low = calibrated.cross_validated, calibrated.cross_validated_lower
    weights = calibrated.weights / calibrated.weights.sum()
    limit = settings.confidence / (1 - settings.confidence)
    return QualityPrediction(
        mae=float(weights @ np.abs(out - dice)),
        baseline_mae=float(weights @ np.abs(calibrated.baseline - dice)),
        spearman=spearman(out, dice),
        coverage=float(weights @ (dice >= low)) if low.any() else None,
        predicted=predicted,
        lower=lower,
        points=tuple(
            CalibrationPoint(case.case, case.dice, float(p), float(b))
            for case, p, b in zip(usable, out, low, strict=True)
        ),
        patients=patients,
        note=_limit(patients, limit, settings),
        worth=signal_worth(names, features, dice, calibrated.folds) if with_worth else (),
    )


def _judgeable(signals: Mapping[str, float]) -> bool:
    return signals.get(FOREGROUND, 1.0) > 0


def _informative(cases: Sequence[CalibrationCase]) -> list[str]:
    """Return the names of the signals that vary over the calibration cases."""
    names = sorted({name for case in cases for name in case.signals})
    columns = {name: np.array([case.signals.get(name, np.nan) for case in cases], dtype=np.float64) for name in names}
    finite = {name: column[np.isfinite(column)] for name, column in columns.items()}
    return [name for name, column in finite.items() if column.size and np.ptp(column) > 1e-12]


def _obstacle(cases: Sequence[CalibrationCase], patients: int, names: Sequence[str]) -> str:
    if patients < FEW_PATIENTS:
        return (
            f"{patients} held-out patients with a pseudo-label are too few to predict quality (at least "
            f"{FEW_PATIENTS} are needed); label more patients or raise held_out"
        )
    if np.ptp([case.dice for case in cases]) < 1e-6:
        return "all held-out cases have the same Dice, so there is nothing to learn a prediction from"
    if not names:
        return "no signal varies over the held-out cases, so there is nothing to predict quality from"
    return ""


def _limit(patients: int, needed: float, settings: QualitySettings) -> str:
    if patients < needed - 1e-9:
        return (
            f"{patients} calibration patients are too few for a lower bound at confidence {settings.confidence:g} "
            f"(about {needed:.0f} are needed): it is 0, so nothing is accepted unseen"
        )
    if patients - 1 < needed - 1e-9:
        return (
            f"{patients} calibration patients are just enough for a lower bound at confidence {settings.confidence:g}; "
            "where one is left out to check it, the others are not, so how often it holds could not be measured"
        )
    return ""


def _matrix(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    matrix = np.array([[row.get(name, np.nan) for name in names] for row in rows], dtype=np.float64)
    matrix[~np.isfinite(matrix)] = np.nan
    return matrix

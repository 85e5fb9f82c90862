"""Conformal lower bounds whose exchangeable unit is the patient.

CV+ (Barber, Candes, Ramdas, Tibshirani, Annals of Statistics 49(1), 2021) with one-sided residuals, each patient
weighing the same however many cases they have (Lee, Barber, Willett, arXiv:2306.06342). Split conformal prediction
would spend half of the few calibration patients on residuals alone; here every patient gives both, and no residual
comes from a regression that saw the patient. At confidence 1 - a the theorem promises 1 - 2a and practice shows about
1 - a; for patients who are exchangeable with the calibration's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rfss_core.quality.regression import Floats, Predictor, fit

MAX_FOLDS = 20
"""With more calibration patients than this, folds hold several patients each."""

_BLOCK = 2000


class Folds:
    """Patients in folds, left out one by one where they are at most 20.

    Args:
        patients: patient of each case.
    """

    def __init__(self, patients: Sequence[str]) -> None:
        unique = sorted(set(patients))
        fold_of = {patient: index % MAX_FOLDS for index, patient in enumerate(unique)}
        counts: dict[str, int] = dict.fromkeys(unique, 0)
        for patient in patients:
            counts[patient] += 1
        self.of_case = np.array([fold_of[patient] for patient in patients])
        self.number = min(len(unique), MAX_FOLDS)
        self.weights: Floats = np.array([1.0 / counts[patient] for patient in patients])

    def fit(self, features: Floats, dice: Floats, *without: int) -> Predictor:
        """Return the regression on all folds but some."""
        kept = ~np.isin(self.of_case, without)
        return fit(features[kept], dice[kept], self.weights[kept])

    def cross_validated(self, features: Floats, dice: Floats) -> Floats:
        """Return each case's prediction by the regression that saw nobody of its fold, [n]."""
        found: Floats = np.empty_like(dice)
        for fold in range(self.number):
            mine = self.of_case == fold
            found[mine] = self.fit(features, dice, fold)(features[mine])
        return found


class Calibration:
    """Regressions without each fold and each pair of folds, for CV+ and for its own cross-validation.

    Args:
        features: [n, F]; NaN where a signal does not apply.
        dice: [n].
        patients: patient of each case.
        miss: share of bounds that may fail: 1 - confidence.
    """

    def __init__(self, features: Floats, dice: Floats, patients: Sequence[str], miss: float) -> None:
        self._miss = miss
        self.folds = folds = Folds(patients)
        self.weights = folds.weights
        self._models = [folds.fit(features, dice, fold) for fold in range(folds.number)]
        self._final = folds.fit(features, dice)
        self.cross_validated: Floats = np.empty_like(dice)
        """[n]: predictions by regressions that did not see the case's patient."""
        self.baseline: Floats = np.empty_like(dice)
        """[n]: mean Dice of the other folds."""
        # between[i, f]: case i predicted without its own fold and without fold f.
        between = np.full((dice.size, folds.number), np.nan)
        for fold in range(folds.number):
            mine = folds.of_case == fold
            self.cross_validated[mine] = self._models[fold](features[mine])
            self.baseline[mine] = np.average(dice[~mine], weights=self.weights[~mine])
            for other in range(fold + 1, folds.number):
                model, theirs = folds.fit(features, dice, fold, other), folds.of_case == other
                between[mine, other] = model(features[mine])
                between[theirs, fold] = model(features[theirs])
        self._residuals: Floats = self.cross_validated - dice
        self.cross_validated_lower: Floats = np.empty_like(dice)
        """[n]: lower bounds by the same procedure, run without the case's fold."""
        for case in range(dice.size):
            own = folds.of_case[case]
            rest = folds.of_case != own
            candidates = between[case, folds.of_case[rest]] - (between[rest, own] - dice[rest])
            bound = self._lower(candidates[None], self.weights[rest])
            self.cross_validated_lower[case] = min(float(bound[0]), float(self.cross_validated[case]))

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Return predicted Dice [n] and its lower bound [n] of cases with features [n, F]."""
        point = self._final(features)
        bounds = []
        for start in range(0, len(features), _BLOCK):
            by_fold = np.stack([model(features[start : start + _BLOCK]) for model in self._models])  # [folds, n]
            bounds.append(self._lower(by_fold[self.folds.of_case].T - self._residuals, self.weights))
        return point, np.minimum(np.concatenate(bounds), point) if bounds else point

    def _lower(self, candidates: Floats, weights: Floats) -> Floats:
        """Return, for each row, the largest candidate with at most ``miss`` of the weight below it.

        The query's patient weighs one patient, at minus infinity, which Dice bounds to 0.
        """
        order = np.argsort(candidates, axis=1, kind="stable")
        ordered = np.take_along_axis(candidates, order, axis=1)
        mass = weights[order]
        below = (1.0 + np.cumsum(mass, axis=1) - mass) / (1.0 + weights.sum())
        allowed = (below <= self._miss + 1e-9).sum(axis=1)
        bound = ordered[np.arange(len(ordered)), np.maximum(allowed - 1, 0)]
        return np.where(allowed > 0, np.clip(bound, 0.0, 1.0), 0.0)

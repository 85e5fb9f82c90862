"""Bootstrap confidence intervals over patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError

LEVEL = 0.95
"""Confidence level of all intervals."""

FEW_PATIENTS = 5
"""Below so many held-out patients nothing is guaranteed."""


@dataclass(frozen=True)
class Interval:
    """Mean over patients with its confidence interval; ``None`` where the data say nothing."""

    mean: float | None
    """Mean of the patients' means; ``None`` without patients."""
    ci_low: float | None
    """Lower end of the 95 % interval."""
    ci_high: float | None
    """Upper end of the 95 % interval; ``None`` where one patient measures an unbounded quantity."""
    n: int
    """Number of patients."""

    def to_json(self) -> dict[str, float | int | None]:
        """Return the interval as plain JSON types."""
        return asdict(self)


def bootstrap_interval(
    values: Sequence[float],
    patients: Sequence[str],
    resamples: int,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Estimate a mean and its 95 % interval by resampling patients, never cases or slices.

    A patient's cases are averaged first: they are not independent. The interval is the bias-corrected and accelerated
    one (Efron, JASA 82(397), 1987; ``scipy.stats.bootstrap``), and the percentile one where that is undefined.
    Bootstrap intervals of fewer than about ten patients are too narrow. Patients who all agree give an interval of
    width 0. One patient says nothing about others: the interval is ``bounds``.

    Args:
        values: one value a case; NaN is refused.
        patients: patient of each case, of the same length.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.
        bounds: least and largest possible value; an infinite one becomes ``None`` in the interval of one patient.

    Returns:
        The interval. Its ends contain the mean.

    Raises:
        InputError: lengths differ or a value is not finite.
    """
    if len(values) != len(patients):
        raise InputError(f"{len(values)} values but {len(patients)} patients; give one patient a value")
    means = patient_means(values, patients)
    if means.size == 0:
        return Interval(None, None, None, 0)
    mean = float(means.mean())
    if means.size == 1:
        low, high = (bound if math.isfinite(bound) else None for bound in bounds)
        return Interval(mean, low, high, 1)
    if np.ptp(means) < 1e-12:
        return Interval(mean, mean, mean, int(means.size))
    low, high = _resample(means, resamples, seed)
    return Interval(mean, min(low, mean), max(high, mean), int(means.size))


def patient_means(values: Sequence[float], patients: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the mean of each patient's values, patients in sorted order.

    Args:
        values: one finite value a case.
        patients: patient of each case.

    Raises:
        InputError: a value is not finite.
    """
    groups: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if not math.isfinite(value):
            raise InputError(f"a value of patient '{patient}' is {value}; only finite values have a mean")
        groups.setdefault(patient, []).append(value)
    return np.array([math.fsum(groups[patient]) / len(groups[patient]) for patient in sorted(groups)])


def _resample(means: npt.NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    import warnings

    from scipy.stats import DegenerateDataWarning, bootstrap

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            result = bootstrap(
                (means,), np.mean, n_resamples=resamples, confidence_level=LEVEL, method=method,
                rng=np.random.default_rng(seed), vectorized=True, batch=1000,
            )  # fmt: skip
        low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high

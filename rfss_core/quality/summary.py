"""Summary of the held-out measurements: intervals per class and over classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rfss_core.quality.bootstrap import Interval, bootstrap_interval
from rfss_core.quality.metrics import ClassMetric
from rfss_core.settings import QualitySettings


@dataclass(frozen=True)
class CaseMeasurement:
    """What a held-out case's metrics are."""

    case: str
    """Name of the case."""
    patient: str
    """Its patient."""
    metrics: tuple[ClassMetric, ...]
    """One metric a class."""

    @property
    def dice(self) -> float:
        """Mean Dice over the classes, 0 to 1."""
        return math.fsum(metric.dice for metric in self.metrics) / len(self.metrics)


@dataclass(frozen=True)
class QualitySummary:
    """Dice and HD95 on held-out patients; keys are class names, then ``mean`` over classes."""

    dice: dict[str, Interval]
    """Dice intervals; a class that no held-out truth contains has ``mean=None`` and ``n=0``."""
    hd95: dict[str, Interval]
    """HD95 intervals in mm."""
    present: dict[str, int]
    """Number of held-out cases whose truth contains the class."""
    cases: int
    """Number of held-out cases."""
    patients: int
    """Number of held-out patients."""

    @property
    def unmeasured(self) -> list[str]:
        """Classes that no held-out truth contains."""
        return [name for name, count in self.present.items() if count == 0]


def summarise(
    measurements: Sequence[CaseMeasurement], classes: Mapping[int, str], settings: QualitySettings, seed: int
) -> QualitySummary:
    """Reduce case measurements to intervals over patients.

    A class that no held-out truth contains is not measured: agreement on its absence says nothing about how well it is
    found, so it stays out of the mean over classes too. ``mean`` is the mean over the measured classes of a case,
    then over a patient's cases, then over patients.

    Args:
        measurements: metrics of each held-out case.
        classes: label value to name.
        settings: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        The summary.
    """
    ordered = [classes[value] for value in sorted(classes)]
    tables = [{metric.name: metric for metric in measurement.metrics} for measurement in measurements]
    patients = [measurement.patient for measurement in measurements]
    present = {name: sum(table[name].presence in ("both", "missed") for table in tables) for name in ordered}
    measured = [name for name in ordered if present[name]]

    def interval(values: list[float], bounds: tuple[float, float]) -> Interval:
        return bootstrap_interval(values, patients if values else [], settings.bootstrap, seed, bounds)

    dice, hd95 = {}, {}
    for name in ordered:
        rows = tables if name in measured else []
        dice[name] = interval([table[name].dice for table in rows], (0.0, 1.0))
        hd95[name] = interval([table[name].hd95 for table in rows], (0.0, math.inf))
    rows = tables if measured else []
    count = max(len(measured), 1)
    dice["mean"] = interval([math.fsum(t[name].dice for name in measured) / count for t in rows], (0.0, 1.0))
    hd95["mean"] = interval([math.fsum(t[name].hd95 for name in measured) / count for t in rows], (0.0, math.inf))
    return QualitySummary(dice, hd95, present, len(measurements), len(set(patients)))

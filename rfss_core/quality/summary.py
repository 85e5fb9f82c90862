"""Summary of the held-out measurements: intervals per class and over classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rfss_core.quality.bootstrap import Interval, bootstrap_interval
from rfss_core.quality.metrics import ClassMetric
from rfss_core.settings import QualitySettings

MORE_METRICS: dict[str, tuple[float, float]] = {
    "iou": (0.0, 1.0),
    "surface_distance": (0.0, math.inf),
    "surface_dice": (0.0, 1.0),
    "volume_difference": (-math.inf, math.inf),
}
"""Metrics beside Dice and HD95 (fields of :class:`rfss_core.quality.metrics.ClassMetric`) with their bounds."""


@dataclass(frozen=True)
class CaseMeasurement:
    """What a held-out case's metrics are."""

    case: str
    """Name of the case."""
    patient: str
    """Its patient."""
    metrics: tuple[ClassMetric, ...]
    """One metric a class."""
    slices: tuple[tuple[ClassMetric, ...], ...] = ()
    """The same for each slice in its plane; empty where slices were not measured."""

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
    more: dict[str, dict[str, Interval]] = field(default_factory=dict)
    """The other metrics by name, see :data:`MORE_METRICS`: intervals with the keys of ``dice``."""

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

    def intervals(metric: str, bounds: tuple[float, float]) -> dict[str, Interval]:
        found = {}
        for name in [*ordered, "mean"]:
            rows = tables if (measured if name == "mean" else name in measured) else []
            own = measured if name == "mean" else [name]
            values = [math.fsum(getattr(table[one], metric) for one in own) / len(own) for table in rows]
            owners = patients if rows else []
            found[name] = bootstrap_interval(values, owners, settings.bootstrap, seed, bounds)
        return found

    # Measurements of an older kind carry Dice and HD95 alone.
    whole = all(math.isfinite(metric.iou) for measurement in measurements for metric in measurement.metrics)
    return QualitySummary(
        intervals("dice", (0.0, 1.0)),
        intervals("hd95", (0.0, math.inf)),
        present,
        len(measurements),
        len(set(patients)),
        {metric: intervals(metric, bounds) for metric, bounds in MORE_METRICS.items()} if whole else {},
    )

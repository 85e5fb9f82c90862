"""The data set's quality gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rfss_core.quality.summary import CaseMeasurement, QualitySummary
from rfss_core.settings import QualitySettings

FEW_PATIENTS = 5
"""Below so many held-out patients nothing is guaranteed."""


@dataclass(frozen=True)
class GateResult:
    """Verdict on a data set."""

    passed: bool
    """Whether the data set may be promoted."""
    reasons: list[str]
    """Why it passed or failed, one sentence each."""
    advice: list[str]
    """What would help most, one sentence each; empty where there is nothing to say."""


@dataclass(frozen=True)
class Gate:
    """Least mean Dice over classes on held-out patients."""

    settings: QualitySettings
    """Holds ``min_dice``."""

    def judge(self, summary: QualitySummary, measurements: Sequence[CaseMeasurement] = ()) -> GateResult:
        """Judge a data set by its held-out cases.

        Args:
            summary: intervals on the held-out patients.
            measurements: the held-out cases themselves, from which advice names the worst.

        Returns:
            The verdict: passed when the mean Dice over the measured classes is at least ``min_dice``. Without any
            measured class it fails: quality that nobody knows is not good enough.
        """
        mean = summary.dice["mean"]
        least = self.settings.min_dice
        if mean.mean is None:
            return GateResult(
                False,
                [f"no class could be measured on {summary.cases} held-out cases, so min_dice {least:g} is not shown"],
                ["Label cases that contain the classes, or raise held_out, and run again."],
            )
        passed = mean.mean >= least
        verdict = "reaches" if passed else "is below"
        reasons = [f"mean Dice over classes {mean.mean:.3f} ({_ends(mean.ci_low, mean.ci_high)}) {verdict} {least:g}"]
        if passed and mean.ci_low is not None and mean.ci_low < least:
            reasons.append(f"the interval's lower end {mean.ci_low:.3f} is below {least:g}: the verdict is not certain")
        if summary.patients < FEW_PATIENTS:
            reasons.append(
                f"only {summary.patients} held-out patient{'s' if summary.patients > 1 else ''}: the interval is wide "
                f"and nothing is guaranteed (at least {FEW_PATIENTS} are needed)"
            )
        if summary.unmeasured:
            reasons.append(f"not measured, absent from every held-out case: {', '.join(summary.unmeasured)}")
        return GateResult(passed, reasons, self._advice(summary, measurements))

    def _advice(self, summary: QualitySummary, measurements: Sequence[CaseMeasurement]) -> list[str]:
        advice = []
        low = {
            name: interval.mean
            for name, interval in summary.dice.items()
            if name != "mean" and interval.mean is not None and interval.mean < self.settings.min_dice
        }
        if low:
            worst = min(low, key=lambda name: low[name])
            advice.append(f"Weakest class: {worst} (Dice {low[worst]:.3f}). Label more slices that show it.")
        poor = sorted((m for m in measurements if m.dice < self.settings.min_dice), key=lambda m: (m.dice, m.case))
        if poor:
            named = ", ".join(f"{m.case} ({m.dice:.2f})" for m in poor[:3])
            advice.append(f"Worst held-out cases: {named}. Label patients who look like these.")
        if summary.patients < FEW_PATIENTS:
            advice.append(f"Label more patients or raise held_out until {FEW_PATIENTS} patients are held out.")
        if summary.unmeasured:
            advice.append(f"Label cases that contain {', '.join(summary.unmeasured)}, so that they can be measured.")
        return advice


def _ends(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"95 % interval {low:.3f} to {high:.3f}"

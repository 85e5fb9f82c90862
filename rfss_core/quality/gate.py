"""The data set's quality gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rfss_core.quality.bootstrap import FEW_PATIENTS, Interval
from rfss_core.quality.prediction import QualityPrediction
from rfss_core.quality.summary import CaseMeasurement, QualitySummary
from rfss_core.settings import QualitySettings

MISCALIBRATED = 0.01
"""Chance below which a run of missed lower bounds is no longer put down to chance."""

NAMED = 3
"""Cases that an advice names."""


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
class GateEvidence:
    """What the gate looks at besides the held-out cases."""

    prediction: QualityPrediction | None = None
    """Whose calibration is judged, and which names what to label next."""
    quarantined: float = 0.0
    """Share of all cases that were set aside."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What to call a case; default: its id."""


@dataclass(frozen=True)
class Gate:
    """Conditions that a data set must meet before it is promoted."""

    settings: QualitySettings
    """The thresholds."""

    def judge(
        self,
        summary: QualitySummary,
        measurements: Sequence[CaseMeasurement] = (),
        evidence: GateEvidence | None = None,
    ) -> GateResult:
        """Judge a data set by its held-out cases.

        Args:
            summary: intervals on the held-out patients.
            measurements: the held-out cases themselves, from which advice names the worst.
            evidence: what else is known.

        Returns:
            The verdict. Passed when the mean Dice over the measured classes is at least ``min_dice``, its interval's
            lower end at least ``min_dice_low``, every measured class's mean at least ``min_class_dice``, the share of
            cases set aside at most ``max_quarantined``, and the lower bounds on Dice hold about as often as they say:
            it fails where so many misses would come up in fewer than one of a hundred well-calibrated runs. Without any
            measured class it fails: quality that nobody knows is not good enough.
        """
        evidence = evidence or GateEvidence()
        if summary.dice["mean"].mean is None:
            least = self.settings.min_dice
            return GateResult(
                False,
                [f"no class could be measured on {summary.cases} held-out cases, so min_dice {least:g} is not shown"],
                ["Label cases that contain the classes, or raise held_out, and run again."],
            )
        failures, remarks = self._mean(summary.dice["mean"])
        failures += self._classes(summary) + self._quarantined(evidence) + self._calibration(evidence)
        if summary.patients < FEW_PATIENTS:
            remarks.append(
                f"only {summary.patients} held-out patient{'s' if summary.patients > 1 else ''}: the interval is wide "
                f"and nothing is guaranteed (at least {FEW_PATIENTS} are needed)"
            )
        if summary.unmeasured:
            remarks.append(f"not measured, absent from every held-out case: {', '.join(summary.unmeasured)}")
        return GateResult(not failures, failures + remarks, self._advice(summary, measurements, evidence))

    def _mean(self, mean: Interval) -> tuple[list[str], list[str]]:
        """Return failures and remarks about the mean Dice over classes."""
        least, low = self.settings.min_dice, self.settings.min_dice_low
        assert mean.mean is not None
        figure = f"mean Dice over classes {mean.mean:.3f} ({_ends(mean.ci_low, mean.ci_high)})"
        failures, remarks = [], []
        if mean.mean < least:
            failures.append(f"{figure} is below {least:g}")
        else:
            remarks.append(f"{figure} reaches {least:g}")
            if mean.ci_low is not None and mean.ci_low < least:
                remarks.append(
                    f"the interval's lower end {mean.ci_low:.3f} is below {least:g}: the verdict is not certain"
                )
        if mean.ci_low is not None and mean.ci_low < low:
            failures.append(f"the interval's lower end {mean.ci_low:.3f} is below min_dice_low {low:g}")
        return failures, remarks

    def _classes(self, summary: QualitySummary) -> list[str]:
        least = self.settings.min_class_dice
        return [
            f"mean Dice of class {name} {interval.mean:.3f} is below min_class_dice {least:g}"
            for name, interval in summary.dice.items()
            if name != "mean" and interval.mean is not None and interval.mean < least
        ]

    def _quarantined(self, evidence: GateEvidence) -> list[str]:
        most = self.settings.max_quarantined
        if evidence.quarantined <= most:
            return []
        return [f"{evidence.quarantined:.0%} of the cases were set aside, more than max_quarantined {most:.0%}"]

    def _calibration(self, evidence: GateEvidence) -> list[str]:
        prediction = evidence.prediction
        if prediction is None or prediction.coverage is None:
            return []
        from scipy.stats import binom

        # Cases of one patient miss together, so patients are counted, not cases.
        held = round(prediction.coverage * prediction.patients)
        if binom.cdf(held, prediction.patients, self.settings.confidence) >= MISCALIBRATED:
            return []
        held_share = f"{prediction.coverage:.0%} of the held-out patients, not for {self.settings.confidence:.0%}"
        return [f"the lower bounds on Dice hold for {held_share}: predicted quality cannot be trusted"]

    def _advice(
        self, summary: QualitySummary, measurements: Sequence[CaseMeasurement], evidence: GateEvidence
    ) -> list[str]:
        advice = []
        least = max(self.settings.min_dice, self.settings.min_class_dice)
        low = {
            name: interval.mean
            for name, interval in summary.dice.items()
            if name != "mean" and interval.mean is not None and interval.mean < least
        }
        if low:
            worst = min(low, key=lambda name: low[name])
            advice.append(f"Weakest class: {worst} (Dice {low[worst]:.3f}). Label more slices that show it.")

        def named(cases: Sequence[tuple[float, str]]) -> str:
            return ", ".join(f"{evidence.names.get(case, case)} ({dice:.2f})" for dice, case in cases[:NAMED])

        poor = sorted((m.dice, m.case) for m in measurements if m.dice < self.settings.min_dice)
        if poor:
            advice.append(f"Worst held-out cases: {named(poor)}. Label patients who look like these.")
        if evidence.prediction is not None and (low or poor):
            guessed = evidence.prediction.predicted
            doubtful = sorted((dice, case) for case, dice in guessed.items() if dice is not None)
            empty = sorted(case for case, dice in guessed.items() if dice is None)
            if doubtful:
                advice.append(
                    f"Lowest predicted Dice: {named(doubtful)}. `rfss review export` lists what to correct first."
                )
            elif empty:
                listed = ", ".join(evidence.names.get(case, case) for case in empty[:NAMED])
                advice.append(f"Without any mask: {listed}. `rfss review export` lists what to correct first.")
        if self._quarantined(evidence):
            advice.append("Mend or remove the cases that were set aside; the report lists the reasons.")
        if summary.patients < FEW_PATIENTS:
            advice.append(f"Label more patients or raise held_out until {FEW_PATIENTS} patients are held out.")
        if summary.unmeasured:
            advice.append(f"Label cases that contain {', '.join(summary.unmeasured)}, so that they can be measured.")
        return advice


def _ends(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"95 % interval {low:.3f} to {high:.3f}"

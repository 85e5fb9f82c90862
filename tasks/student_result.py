"""What a run of ``train_student`` found: figures of the test, and what the pseudo-labels brought."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from rfss_core.quality import CaseMeasurement, Interval, bootstrap_interval, summarise
from rfss_core.quality.bootstrap import patient_means
from rfss_core.settings import QualitySettings
from tasks.summary import IntervalPart, jsonable

HELPED, HARMED, OPEN = "they helped", "they did harm", "no clear difference"


class Tested(BaseModel):
    """Quality of a network on patients who neither trained nor validated; empty without such patients."""

    dice: dict[str, IntervalPart] = Field(default_factory=dict)
    """Per class and ``mean``."""
    hd95: dict[str, IntervalPart] = Field(default_factory=dict)
    patients: dict[str, float] = Field(default_factory=dict)
    """Mean Dice over the classes of each patient."""

    @classmethod
    def of(cls, measured: Sequence[CaseMeasurement], classes: dict[int, str], seed: int) -> Tested:
        """Summarise the measurements of the test cases."""
        if not measured:
            return cls()
        summary = summarise(measured, classes, QualitySettings.model_validate({}), seed)
        values = [[metric.dice for metric in one.metrics if metric.name not in summary.unmeasured] for one in measured]
        patients = [one.patient for one in measured]
        means = patient_means([sum(own) / len(own) if own else 0.0 for own in values], patients)
        return cls(
            dice={name: _part(one) for name, one in summary.dice.items()},
            hd95={name: _part(one) for name, one in summary.hd95.items()},
            patients=dict(zip(sorted(set(patients)), means.tolist(), strict=True)),
        )


class Alone(BaseModel):
    """A network that was trained on the experts' labels alone, as the student was on more."""

    tested: Tested
    slices: int
    """That trained it, with those of the patients who validate."""
    steps: int
    weights: str
    """sha256 of its file."""
    folder: str


class Comparison(BaseModel):
    """A student beside the same network on the experts' labels alone: same test patients, settings and seed."""

    alone: Alone
    gain: IntervalPart
    """Mean Dice of the student minus that of the other network, paired over patients."""

    @classmethod
    def of(cls, student: Tested, alone: Alone, seed: int) -> Comparison:
        """Compare the two on their patients, who are the same."""
        patients = sorted(student.patients)
        gains = [student.patients[patient] - alone.tested.patients[patient] for patient in patients]
        resamples = QualitySettings.model_validate({}).bootstrap
        return cls(alone=alone, gain=_part(bootstrap_interval(gains, patients, resamples, seed, (-1.0, 1.0))))

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.gain.ci_low is not None and self.gain.ci_low > 0:
            return HELPED
        return HARMED if self.gain.ci_high is not None and self.gain.ci_high < 0 else OPEN


class StudentResult(BaseModel):
    """What a run of ``train_student`` did; stands in ``student.json``."""

    student: str
    """``name/version`` of the registered model."""
    dataset: str
    dataset_digest: str
    network: str
    weights: str
    """sha256 of the model's file."""
    folder: str
    """Holds the model and this file."""
    counts: dict[str, int]
    """Patients, cases and slices by part."""
    steps: int
    best_validation_dice: float | None
    test_dice: dict[str, IntervalPart] = Field(default_factory=dict)
    """Per class and ``mean``, on patients who neither trained nor validated; empty without such patients."""
    test_hd95: dict[str, IntervalPart] = Field(default_factory=dict)
    seconds: dict[str, float]
    device: str
    mlflow_run_id: str
    patient_dice: dict[str, float] = Field(default_factory=dict)
    """Mean Dice over the classes of each test patient."""
    comparison: Comparison | None = None
    """With a network on the experts' labels alone; None where it was not asked for or nobody is left for a test."""
    trained_before: bool = False
    """Whether an earlier run had finished this very student."""

    @property
    def tested(self) -> Tested:
        """The test's figures."""
        return Tested(dice=self.test_dice, hd95=self.test_hd95, patients=self.patient_dice)


def card_text(result: StudentResult) -> str:
    """Return what a data set's card says of a student, in Markdown."""
    about = (
        f"Network `{result.network}`, {result.steps} steps, MLflow run `{result.mlflow_run_id}`; "
        f"{result.counts['pseudo_cases']} pseudo-labelled cases beside {result.counts['expert_cases']} of experts."
    )
    if not result.test_dice:
        return f"{about}\n\nNobody was left for a test, so nothing is known of its quality."
    lines = [
        "| trained on | slices | test patients | Dice | 95 % interval | HD95 |",
        "|---|---|---|---|---|---|",
    ]
    if result.comparison is not None:
        alone = result.comparison.alone
        lines.append(_row("experts' labels alone", alone.slices, alone.tested))
    lines.append(_row("experts' labels and pseudo-labels", result.counts["slices"], result.tested))
    end = "Not compared with a network on the experts' labels alone (`rfss train --compare` does)."
    if result.comparison is not None:
        gain = result.comparison.gain
        end = f"Gain in Dice, paired over patients: {gain_text(gain)}: **{result.comparison.verdict}**."
    return "\n".join([about, "", *lines, "", end])


def gain_text(gain: IntervalPart) -> str:
    """Return a difference of Dice with its interval in words."""
    if gain.mean is None or gain.ci_low is None or gain.ci_high is None:
        return "n/a"
    return f"{gain.mean:+.3f} (95 % interval {gain.ci_low:+.3f} to {gain.ci_high:+.3f})"


def _row(name: str, slices: int, tested: Tested) -> str:
    dice, far = tested.dice["mean"], tested.hd95["mean"].mean
    known = dice.mean is not None and dice.ci_low is not None and dice.ci_high is not None
    figures = f"{dice.mean:.3f} | {dice.ci_low:.3f} to {dice.ci_high:.3f}" if known else "n/a | n/a"
    return f"| {name} | {slices} | {dice.n} | {figures} | {'n/a' if far is None else f'{far:.1f}'} |"


def _part(interval: Interval) -> IntervalPart:
    return IntervalPart(
        mean=jsonable(interval.mean), ci_low=jsonable(interval.ci_low), ci_high=jsonable(interval.ci_high), n=interval.n
    )

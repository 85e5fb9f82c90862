"""Table of a study: means and deviations over seeds, paired differences, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rfss_core.figures import NOT_KNOWN, interval, number
from rfss_core.quality.bootstrap import Interval, bootstrap_interval
from rfss_core.quality.thirds import THIRDS
from rfss_core.study.result import RowResult
from rfss_core.study.settings import Claim, StudySettings

RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; None where unknown."""

    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Return the spread of the values that are known."""
        known = [value for value in values if value is not None]
        return cls(statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None)

    def text(self, digits: int = 3) -> str:
        """Return ``0.512 ± 0.034``."""
        if self.mean is None:
            return NOT_KNOWN
        return number(self.mean, digits) + ("" if self.sd is None else f" ± {self.sd:.{digits}f}")


@dataclass(frozen=True)
class Line:
    """One method over its seeds."""

    label: str
    segmenter: str
    strategy: str
    k: int
    seeds: int
    support_slices: float
    dice: dict[str, Spread]
    """By class, and ``mean``."""
    interval: dict[str, Interval]
    """95 % interval of the same over test patients; a patient that several seeds test counts once."""
    hd95: Spread
    seconds_a_slice: Spread
    """Wall seconds of the segmentation stage a slice: reading, retrieval, models, writing."""
    processor_seconds_a_slice: Spread
    train_seconds: Spread
    thirds: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Mean Dice by third of the labelled slices, then by class and ``mean``."""


@dataclass(frozen=True)
class Verdict:
    """What the figures say about a claim."""

    claim: Claim
    difference: float | None
    """Mean over seeds and their test patients of the paired differences in Dice; None where a row is missing."""
    error: float | None
    """Standard error over the patients (a patient that several seeds test counts once)."""
    pairs: int
    holds: bool
    """Whether the mean difference is above what is claimed."""
    shown: bool = False
    """Whether it is so by two standard errors at least."""

    def answer(self) -> str:
        """Return what a table says."""
        return ("yes" if self.shown else "in the mean only") if self.holds else "**no**"


def lines_of(study: StudySettings, rows: Sequence[RowResult]) -> list[Line]:
    """Return the table's lines in the order of the rows' first occurrence."""
    found = []
    for label in dict.fromkeys(row.label for row in rows):
        own = [row.evaluation for row in rows if row.label == label]
        first = own[0]
        classes = list(first.dice)
        fresh = [one for one in own if one.segmented_now]
        trained = [one.seconds.get("train") for one in own]
        found.append(
            Line(
                label,
                first.segmenter,
                first.strategy,
                first.k,
                len(own),
                statistics.fmean(one.support_slices for one in own),
                {name: Spread.of([one.dice.get(name) for one in own]) for name in classes},
                {name: _interval([row for row in rows if row.label == label], name) for name in classes},
                Spread.of([one.hd95.get("mean") for one in own]),
                Spread.of([one.seconds["segment"] / one.segmented_now for one in fresh if one.segmented_now]),
                Spread.of([one.processor_seconds / one.segmented_now for one in fresh
                           if one.segmented_now and one.processor_seconds is not None]),
                Spread.of(trained),
                _thirds(own, classes) if study.thirds else {},
            )
        )  # fmt: skip
    return found


def by_patient(row: RowResult, column: str) -> dict[str, float]:
    """Return the Dice of each test patient, mean over cases; ``mean``: over the classes that are measured."""
    evaluation = row.evaluation
    measured = [name for name, value in evaluation.dice.items() if name != "mean" and value is not None]
    names = measured if column == "mean" else [column]
    found: dict[str, list[float]] = {}
    for case in evaluation.per_case:
        found.setdefault(case.patient, []).append(statistics.fmean(case.dice[name] for name in names))
    return {patient: statistics.fmean(values) for patient, values in found.items()}


def judge(claim: Claim, rows: Sequence[RowResult]) -> Verdict:
    """Compare two rows patient by patient and seed by seed."""
    above = {row.seed: by_patient(row, claim.column) for row in rows if row.label == claim.above}
    below = {row.seed: by_patient(row, claim.column) for row in rows if row.label == claim.below}
    pairs = [
        (patient, value - below[seed][patient])
        for seed, scores in above.items()
        if seed in below
        for patient, value in scores.items()
        if patient in below[seed]
    ]
    if not pairs:
        return Verdict(claim, None, None, 0, holds=False)
    difference = statistics.fmean(value for _, value in pairs)
    patients: dict[str, list[float]] = {}
    for patient, value in pairs:
        patients.setdefault(patient, []).append(value)
    means = [statistics.fmean(values) for values in patients.values()]
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else None
    holds = difference > claim.by
    shown = holds and error is not None and difference - claim.by >= 2 * error
    return Verdict(claim, difference, error, len(pairs), holds, shown)


def markdown(study: StudySettings, lines: Sequence[Line], verdicts: Sequence[Verdict]) -> str:
    """Return the study's tables: figures, thirds, claims, and beside them what others published."""
    parts = [f"## {study.title or study.name}", study.about.strip()] if study.about else [f"## {study.title}"]
    classes = list(lines[0].dice) if lines else []
    head = ["method", "seeds", *(f"Dice {name}" for name in classes), "95 % of the mean", "HD95 mm", "s a slice"]
    head += ["processor s a slice"]
    body = [
        [
            line.label,
            str(line.seeds),
            *(line.dice[name].text() for name in classes),
            _bounds(line.interval["mean"]),
            line.hd95.text(1),
            Spread(line.seconds_a_slice.mean, None).text(3),
            Spread(line.processor_seconds_a_slice.mean, None).text(3),
        ]
        for line in lines
    ]
    parts.append(grid(head, body))
    if study.thirds:
        parts.append(_thirds_table(lines))
    if verdicts:
        rows = [
            [
                verdict.claim.text,
                NOT_KNOWN if verdict.difference is None else f"{verdict.difference:+.3f}",
                number(verdict.error),
                str(verdict.pairs),
                verdict.answer(),
            ]
            for verdict in verdicts
        ]
        parts.append(grid(["claim", "paired difference", "standard error", "pairs", "holds"], rows))
    if study.published is not None:
        columns = list(dict.fromkeys(name for scores in study.published.dice.values() for name in scores))
        rows = [
            [method, *(f"{scores[name]:.4f}" if name in scores else "" for name in columns)]
            for method, scores in study.published.dice.items()
        ]
        parts += [f"Not measured here: {study.published.source}", grid(["method", *columns], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(rows: Sequence[RowResult]) -> str:
    """Return one line a row and class, the long format that statistics programs like."""
    buffer = io.StringIO()
    columns = ["method", "seed", "class", "dice", "hd95", "segmenter", "strategy", "k", "support_slices"]
    columns += ["support_patients", "test_patients", "refused", "segment_seconds", "segmented_now", "train_seconds"]
    columns += ["embedding_weights", "segmentation_weights", "code", "fingerprint", "device", "finished", "command"]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        one = row.evaluation
        for name, dice in one.dice.items():
            writer.writerow(
                {
                    "method": row.label,
                    "seed": row.seed,
                    "class": name,
                    "dice": dice,
                    "hd95": one.hd95.get(name),
                    "segment_seconds": one.seconds.get("segment"),
                    "train_seconds": one.seconds.get("train"),
                    "embedding_weights": one.models.get("embedding"),
                    "segmentation_weights": one.models.get("segmentation"),
                    "fingerprint": row.fingerprint,
                    "device": row.device,
                    "finished": row.finished,
                    "command": row.command,
                    **{key: getattr(one, key) for key in columns if key in type(one).model_fields and key != "dice"
                       and key != "hd95"},
                }
            )  # fmt: skip
    return buffer.getvalue()


def to_json(lines: Sequence[Line], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return lines and verdicts as plain JSON types."""
    return {
        "table": [asdict(line) for line in lines],
        "claims": [{**asdict(one), "claim": one.claim.model_dump(mode="json")} for one in verdicts],
    }


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _interval(rows: Sequence[RowResult], column: str) -> Interval:
    if any(row.evaluation.dice.get(column) is None for row in rows):
        return Interval(None, None, None, 0)
    scores = [pair for row in rows for pair in by_patient(row, column).items()]
    return bootstrap_interval([value for _, value in scores], [patient for patient, _ in scores], RESAMPLES, 0)


def _bounds(found: Interval) -> str:
    text = interval(found.ci_low, found.ci_high)
    return text if text == NOT_KNOWN else f"{text} (n = {found.n})"


def _thirds(evaluations: Sequence[Any], classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    names = [name for name in classes if name != "mean"]
    for third in THIRDS:
        by_class: dict[str, float | None] = {}
        for name in names:
            seeds = []
            for one in evaluations:
                scores: dict[str, list[float]] = {}
                for case in one.per_case:
                    if (dice := case.dice_by_third.get(third, {}).get(name)) is not None:
                        scores.setdefault(case.patient, []).append(dice)
                if scores:
                    seeds.append(statistics.fmean(statistics.fmean(values) for values in scores.values()))
            by_class[name] = statistics.fmean(seeds) if seeds else None
        known = [value for value in by_class.values() if value is not None]
        found[third] = {**by_class, "mean": statistics.fmean(known) if known else None}
    return found


def _thirds_table(lines: Sequence[Line]) -> str:
    columns = [(third, name) for third in THIRDS for name in (lines[0].thirds.get(third, {}) if lines else {})]
    body = [[line.label, *(Spread(line.thirds[third][name], None).text() for third, name in columns)] for line in lines]
    return grid(["method", *(f"{third}: {name}" for third, name in columns)], body)

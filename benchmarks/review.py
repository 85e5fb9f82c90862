r"""The review loop against random review: do reviewed cases raise the held-out Dice, and more than random ones?

Expert labels play the reviewer. For every seed the patients are split: a few support patients, calibration patients
(what a run holds out), test patients (the measurement), and a pool without labels. In each round the pool and the
calibration patients are segmented, the pool's Dice is predicted, and ``--n`` cases of the pool are taken as reviewed:
the first of the review queue (``gain``), or cases drawn at random (``random``, several draws). They join the support
set, and the test patients are segmented again. Neither the queue nor the prediction ever sees a test patient.

    python benchmarks/review.py                                          # phantoms (procedural, not patients)
    python benchmarks/review.py DATA --seeds 0 1 2 3 --support 5 --calibration 10 --test 20 --out results/name

DATA holds ``images/`` and ``labels/``. Prints a Markdown table of the test patients' mean Dice after each round, and
ends with one line of key figures; writes OUT.json and OUT.md. The difference from random is paired by seed: gain
minus the mean of the random draws. Exits 1 where, after the last round, reviewing by gain does not raise the mean Dice,
or not above random's; 2 on input that cannot be used.

``--half 0`` or ``1`` takes half of the patients, by a hash of their names: the order was developed on half 0 of the
hippocampus and measured on half 1. ``--stride 2`` takes every second slice of each volume, to save time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from selection import Case, read_cases

from rfss_core.digest import digest_bytes
from rfss_core.errors import InputError, RfssError
from rfss_core.phantom import write_cohort
from rfss_core.presets import PRESETS
from rfss_core.quality import (
    CalibrationCase,
    Candidate,
    SegmentedCase,
    case_signals,
    predict_quality,
    rank_candidates,
)
from rfss_core.quality.evidence import SegmentedSlice, evidence_table
from rfss_core.retrieval import Retriever, SupportSet
from rfss_core.segmentation import load_segmenter
from rfss_core.settings import QualitySettings, RetrievalSettings, SegmentationSettings

ARMS = ("gain", "random", "lowest")
"""The review queue; random cases; the lowest predicted Dice first."""


_THRESHOLD = SegmentationSettings.model_validate({}).object_score_threshold


@dataclass(frozen=True)
class Course:
    """Mean Dice of the test patients before the first round and after each."""

    seed: int
    arm: str
    draw: int
    dice: list[float]
    support_cases: list[int]


@dataclass(frozen=True, eq=False)
class Cohort:
    """The patients of one seed."""

    support: list[Case]
    calibration: list[Case]
    test: list[Case]
    pool: list[Case]


@dataclass(frozen=True)
class Labelled:
    """A segmented case with its true Dice and, where asked for, its signals."""

    case: Case
    dice: float
    signals: dict[str, float]


class Bench:
    """All labelled cases of a folder, and the models."""

    def __init__(self, cases: Sequence[Case], given: argparse.Namespace) -> None:
        self._given = given
        rows = [(case, z) for case in cases for z in range(len(case.slices))]
        values = sorted({int(value) for case in cases for value in np.unique(case.labels) if value})
        self._classes = {value: str(value) for value in values}
        self._all = SupportSet(
            [f"{case.name}:{z:05d}" for case, z in rows],
            [case.patient for case, _ in rows],
            self._classes,
            lambda i: rows[i][0].slices[rows[i][1]],
            lambda i: rows[i][0].labels[rows[i][1]],
        ).with_embeddings(np.concatenate([case.vectors for case in cases]))
        self._rows: dict[str, list[int]] = {}
        for row, (case, _) in enumerate(rows):
            self._rows.setdefault(case.name, []).append(row)
        self._segmenter = self._loaded(given.segmenter)
        self._fusion = self._loaded("label-fusion")

    def _loaded(self, name: str) -> Any:
        settings = SegmentationSettings.model_validate({"segmenter": name, "device": self._given.device})
        return load_segmenter(settings, PRESETS[self._given.preset])

    def segment(self, support: Sequence[Case], queries: Sequence[Case], *, signals: bool = False) -> list[Labelled]:
        """Segment cases from the whole slices of the support cases."""
        known = self._all.subset(np.concatenate([self._rows[case.name] for case in support]))
        retriever = Retriever(known, RetrievalSettings.model_validate({}), 0)
        found = []
        for case in queries:
            ids = [f"{case.name}:{z:05d}" for z in range(len(case.slices))]
            hits = retriever.search(case.vectors, ids, [case.patient] * len(ids), self._given.k, fewer=True)
            results = self._segmenter.segment(case.slices, hits, known, volumes=[len(ids)], keep_logits=signals)
            labels = np.stack([result.labels for result in results])
            dice = mean_dice(labels, case.labels, list(self._classes))
            noted: dict[str, float] = {}
            if signals:
                votes = self._fusion.segment(case.slices, hits, known, keep_logits=False)
                slices = [SegmentedSlice(*parts) for parts in zip(results, votes, hits, strict=True)]
                evidence = evidence_table(case.name, slices, known.class_values, _THRESHOLD)
                noted = case_signals(SegmentedCase(labels=labels, classes=known.class_values, evidence=evidence))
            found.append(Labelled(case, dice, noted))
        return found

    def predicted(self, support: Sequence[Case], cohort: Cohort, pool: Sequence[Case]) -> dict[str, float | None]:
        """Predict the Dice of the pool's cases, calibrated on the calibration patients."""
        known = self.segment(support, cohort.calibration, signals=True)
        asked = self.segment(support, pool, signals=True)
        prediction = predict_quality(
            [CalibrationCase(one.case.name, one.case.patient, one.signals, one.dice) for one in known],
            {one.case.name: one.signals for one in asked},
            QualitySettings.model_validate({}),
        )
        return prediction.predicted

    def dice(self, support: Sequence[Case], cohort: Cohort) -> float:
        """Return the test patients' mean Dice."""
        by_patient: dict[str, list[float]] = {}
        for one in self.segment(support, cohort.test):
            by_patient.setdefault(one.case.patient, []).append(one.dice)
        return statistics.fmean(statistics.fmean(values) for values in by_patient.values())


def mean_dice(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], values: Sequence[int]) -> float:
    """Return the mean Dice over classes, 1 where a class is in neither; as ``case_metrics``, without its distances."""
    scores = []
    for value in values:
        ours, theirs = found == value, truth == value
        total = int(ours.sum()) + int(theirs.sum())
        scores.append(2 * int((ours & theirs).sum()) / total if total else 1.0)
    return statistics.fmean(scores)


def draw_cohort(cases: Sequence[Case], given: argparse.Namespace, seed: int) -> Cohort:
    """Split the patients of one seed."""
    patients = sorted({case.patient for case in cases}, key=lambda name: digest_bytes(f"{seed}\0{name}".encode()))
    need = given.test + given.calibration + given.support
    if len(patients) <= need:
        raise InputError(f"{len(patients)} labelled patients leave none for the pool beside {need}; ask for fewer")
    ends = np.cumsum([given.test, given.calibration, given.support])
    test, calibration, support, pool = (set(part) for part in np.split(np.array(patients), ends))

    def of(names: set[str]) -> list[Case]:
        return [case for case in cases if case.patient in names]

    kept = set(sorted(pool)[: given.pool])
    return Cohort(support=of(support), calibration=of(calibration), test=of(test), pool=of(kept))


def follow(bench: Bench, cohort: Cohort, given: argparse.Namespace, course: Course) -> Course:
    """Review ``--n`` cases in each round, chosen as the course's arm says."""
    support, pool = list(cohort.support), list(cohort.pool)
    seed, arm, draw = course.seed, course.arm, course.draw
    for number in range(given.rounds):
        if arm == "random":
            order = np.random.default_rng([seed, draw, number]).permutation(len(pool))
            chosen = [pool[i] for i in order[: given.n]]
        else:
            predicted = bench.predicted(support, cohort, pool)
            if arm == "lowest":
                chosen = sorted(pool, key=lambda case: predicted[case.name] or 0.0)[: given.n]
            else:
                candidates = [Candidate(case.name, case.patient, case.vectors, predicted[case.name]) for case in pool]
                vectors = np.concatenate([case.vectors for case in support])
                names = [one.case for one in rank_candidates(candidates, vectors, given.k)[: given.n]]
                chosen = [case for case in pool if case.name in names]
        support += chosen
        pool = [case for case in pool if case.name not in {one.name for one in chosen}]
        course.dice.append(bench.dice(support, cohort))
        course.support_cases.append(len(support))
    print(f"seed {seed}, {arm} {draw}: {', '.join(f'{dice:.4f}' for dice in course.dice)}", file=sys.stderr, flush=True)
    return course


def run(cases: Sequence[Case], given: argparse.Namespace) -> list[Course]:
    """Follow every arm at every seed."""
    bench = Bench(cases, given)
    courses = []
    for seed in given.seeds:
        cohort = draw_cohort(cases, given, seed)
        begun = bench.dice(cohort.support, cohort)
        for arm in given.arms:
            for draw in range(given.draws if arm == "random" else 1):
                course = Course(seed, arm, draw, [begun], [len(cohort.support)])
                courses.append(follow(bench, cohort, given, course))
    return courses


def differences(courses: Sequence[Course], arm: str, number: int) -> list[float]:
    """Return, for each seed, the Dice after a round minus the mean of the random draws."""
    found = []
    for course in courses:
        others = [one.dice[number] for one in courses if one.arm == "random" and one.seed == course.seed]
        if course.arm == arm and others:
            found.append(course.dice[number] - statistics.fmean(others))
    return found


def markdown(courses: Sequence[Course], given: argparse.Namespace) -> str:
    """Return the table as Markdown."""
    heads = " | ".join(f"after {number * given.n}" for number in range(1, given.rounds + 1))
    against = f"against random after {given.n} | against random after {given.rounds * given.n}"
    lines = [
        f"| reviewed by | seeds x draws | before | {heads} | rise | {against} | seeds better |",
        "|" + "---|" * (given.rounds + 7),
    ]
    for arm in dict.fromkeys(course.arm for course in courses):
        own = [course for course in courses if course.arm == arm]
        means = [statistics.fmean(course.dice[number] for course in own) for number in range(given.rounds + 1)]
        cells = [arm, f"{len({course.seed for course in own})} x {len({course.draw for course in own})}"]
        cells += [f"{mean:.3f}" for mean in means] + [f"{means[-1] - means[0]:+.3f}"]
        for number in (1, given.rounds):
            pairs = [] if arm == "random" else differences(courses, arm, number)
            spread = f" ({statistics.stdev(pairs) / len(pairs) ** 0.5:.4f})" if len(pairs) > 1 else ""
            cells.append(f"{statistics.fmean(pairs):+.4f}{spread}" if pairs else "")
        last = [] if arm == "random" else differences(courses, arm, given.rounds)
        cells.append(f"{sum(pair > 0 for pair in last)} of {len(last)}" if last else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def missed(courses: Sequence[Course]) -> list[str]:
    """Return what did not come true, as sentences."""
    own = [course for course in courses if course.arm == "gain"]
    if not own:
        return []
    rise = statistics.fmean(course.dice[-1] - course.dice[0] for course in own)
    ahead = differences(courses, "gain", -1)
    problems = [] if rise > 0 else [f"reviewing by gain does not raise the mean Dice ({rise:+.4f})"]
    if ahead and statistics.fmean(ahead) <= 0:
        problems.append(f"reviewing by gain ends no higher than random review ({statistics.fmean(ahead):+.4f})")
    return problems


def strided(case: Case, step: int) -> Case:
    """Return a case with every so many of its slices."""
    return replace(case, slices=case.slices[::step], labels=case.labels[::step], vectors=case.vectors[::step])


def half_of(patient: str) -> int:
    """Return which half of the patients one belongs to, by a hash of the name."""
    return int(digest_bytes(f"half:{patient}".encode())[7], 16) % 2


def main() -> int:
    """Measure, print, write; see the module's text."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="rfss-review-") as temporary:
        folder = given.folder
        if folder is None:
            folder = Path(temporary)
            write_cohort(folder, patients=24, seed=0)
            given.test, given.calibration, given.support, given.n = 6, 5, 2, 4
        try:
            cases = [strided(case, given.stride) for case in read_cases(folder, given.preset, given.device)]
            if given.half is not None:
                cases = [case for case in cases if half_of(case.patient) == given.half]
            if not cases:
                raise InputError(f"'{folder}' holds no labelled case")
            courses = run(cases, given)
        except RfssError as error:
            print(f"review: {error}", file=sys.stderr)
            return 2
    table = markdown(courses, given)
    print(table)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"courses": [asdict(course) for course in courses]}
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    problems = missed(courses)
    for line in problems:
        print(f"missed: {line}", file=sys.stderr)
    means = {arm: [course.dice for course in courses if course.arm == arm] for arm in given.arms}
    print("; ".join(f"{arm} {np.mean(dice, 0)[0]:.3f} -> {np.mean(dice, 0)[-1]:.3f}" for arm, dice in means.items()))
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="holds images/ and labels/ (default: phantoms)")
    parser.add_argument("--arms", nargs="+", default=["gain", "random"], choices=ARMS)
    parser.add_argument("--segmenter", default="label-fusion", choices=["label-fusion", "sam2-memory"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=3, help="random draws a seed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--n", type=int, default=10, help="cases reviewed in a round")
    parser.add_argument("--support", type=int, default=5, help="patients with labels at the start")
    parser.add_argument("--calibration", type=int, default=10, help="patients that calibrate the prediction")
    parser.add_argument("--test", type=int, default=20, help="patients that the measurement holds out")
    parser.add_argument("--pool", type=int, default=None, help="patients of the pool at most")
    parser.add_argument("--half", type=int, default=None, choices=[0, 1], help="half of the patients")
    parser.add_argument("--stride", type=int, default=1, help="every so many slices")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None, help="write OUT.json and OUT.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

r"""Predicted quality against true quality on patients that neither the networks nor the calibration ever saw.

    python benchmarks/quality.py                        # ACDC and hippocampus below $RFSS_DATA, tiny preset
    python benchmarks/quality.py --sets hippocampus --cache FOLDER   # goes on where it was interrupted

Patients are split three ways: support (retrieved from), calibration (held out, their Dice known to the prediction) and
test (their Dice known to this benchmark alone). ACDC, thirds: 10, 10 and 10 patients, two draws of the support.
Hippocampus: the networks' 14 validation patients are the support, their 40 test patients are halved. Ten repeats
redraw calibration and test; a support set's segmentations serve all its repeats. Every choice in the prediction was
made on other patients (docs/quality.md).

Prints a table, what each signal is worth, and one line of key figures. Exits 1 where a target is missed: mean absolute
error of predicted Dice at most 0.08, Spearman's rank correlation at least 0.6, coverage of the 90 % bound from 0.87 to
0.95, and prediction in less than half of segmentation's own time (memories of the supports already encoded); 2 without
the data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rfss_core.digest import digest_json
from rfss_core.embedding import load_embedder
from rfss_core.errors import InputNotFoundError, RfssError
from rfss_core.imaging import CaseSource, discover, estimate_window, normalise, read_image, read_label
from rfss_core.presets import PRESETS
from rfss_core.pretraining.holdout import assign_parts
from rfss_core.quality import CalibrationCase, case_metrics, predict_quality, split_patients
from rfss_core.quality.assessment import Assessor, PseudoLabelledCase
from rfss_core.quality.evidence import SegmentedSlice, evidence_table
from rfss_core.quality.worth import SignalWorth, spearman
from rfss_core.retrieval import Retriever, SupportSet
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.engine import MemorySegmenter
from rfss_core.settings import (
    EmbeddingSettings,
    ImagingSettings,
    PresetName,
    QualitySettings,
    RetrievalSettings,
    SegmentationSettings,
)

MOST_MAE, LEAST_SPEARMAN, COVERAGE, MOST_TIME = 0.08, 0.6, (0.87, 0.95), 0.5
SETS = ("acdc", "hippocampus")


@dataclass(frozen=True)
class Draw:
    """Who supports, and who is left for calibration and test."""

    support: frozenset[str]
    others: frozenset[str]
    calibration: float
    """Share of the others that calibrate."""


@dataclass(frozen=True)
class Judged:
    """One segmented case."""

    case: str
    patient: str
    dice: float
    signals: dict[str, float]
    slices: int
    segmentation_s: float
    prediction_s: float


@dataclass(frozen=True)
class Repeat:
    """What one split of calibration and test patients shows."""

    mae: float
    baseline_mae: float
    spearman: float
    coverage: float
    dice: float
    """Of all test cases."""
    better_half: float
    """Of the half with the higher lower bounds."""
    accepted: list[float]
    """Dice of those accepted at the settings' target."""


class Models:
    """The preset's models, and the settings of all measurements."""

    def __init__(self, preset: PresetName, share: float) -> None:
        self.segmentation = SegmentationSettings(device="cpu")
        self.embedder = load_embedder(EmbeddingSettings(), PRESETS[preset], "cpu")
        self.segmenter = load_segmenter(self.segmentation, PRESETS[preset])
        self.fusion = load_segmenter(SegmentationSettings(segmenter="label-fusion"), PRESETS[preset])
        self.k = PRESETS[preset].k
        self.share = share


def draws_of(name: str, patients: Sequence[str]) -> list[Draw]:
    """Return the draws of the support set; the patients of each are disjoint."""
    if name == "hippocampus":
        part = assign_parts(name, patients)
        support, test = (frozenset(p for p in patients if part[p] == one) for one in ("validation", "test"))
        return [Draw(support, test, 0.5)]
    splits = [split_patients(patients, 1 / 3, seed) for seed in (0, 1)]
    return [Draw(split.held_out, split.support, 0.5) for split in splits]


def read(source: CaseSource) -> tuple[list[np.ndarray], np.ndarray, tuple[float, ...]]:
    """Return a case's slices, label map and spacing."""
    settings = ImagingSettings()
    volume = read_image(source, settings)
    window = estimate_window(volume.pixels, settings)
    return (
        [normalise(plane, window) for plane in volume.pixels],
        read_label(source, volume.grid, settings),
        volume.spacing,
    )


def support_of(cases: Sequence[CaseSource], models: Models) -> SupportSet:
    """Return all slices of some labelled cases, embedded."""
    images, masks, patients, ids = [], [], [], []
    for case in cases:
        slices, labels, _ = read(case)
        images += slices
        masks += list(labels)
        patients += [case.patient] * len(slices)
        ids += [f"{case.case_id}:{z:05d}" for z in range(len(slices))]
    return SupportSet.from_arrays(images, masks, patients, ids=ids).with_embeddings(models.embedder.embed(images))


def judge(cases: Sequence[CaseSource], support: SupportSet, models: Models) -> Iterator[Judged]:
    """Segment cases, measure them and find their signals."""
    retriever = Retriever(support, RetrievalSettings(), 0)
    assessor = Assessor(support, models.segmenter, models.share)
    classes, threshold = dict(support.classes), models.segmentation.object_score_threshold
    for case in cases:
        slices, truth, spacing = read(case)
        ids = [f"{case.case_id}:{z:05d}" for z in range(len(slices))]
        hits = retriever.search(models.embedder.embed(slices), ids, [case.patient] * len(ids), models.k)
        if isinstance(models.segmenter, MemorySegmenter):
            rows = sorted({int(row) for hit in hits for row in hit.indices})
            models.segmenter.encoder.memories(support, rows, support.class_values)
        started = time.perf_counter()
        found = models.segmenter.segment(slices, hits, support)
        segmented = time.perf_counter()
        votes = models.fusion.segment(slices, hits, support)
        labels = np.stack([one.labels for one in found])
        whole = [SegmentedSlice(one, vote, hit) for one, vote, hit in zip(found, votes, hits, strict=True)]
        evidence = evidence_table(case.case_id, whole, support.class_values, threshold)
        signals = assessor.assess([PseudoLabelledCase(labels, evidence, slices, hits)])[0].case
        ended = time.perf_counter()
        dice = statistics.fmean(metric.dice for metric in case_metrics(labels, truth, classes, spacing))
        yield Judged(
            case.case_id, case.patient, dice, dict(signals), len(slices), segmented - started, ended - segmented
        )


def judged(name: str, number: int, draw: Draw, cases: Sequence[CaseSource], given: argparse.Namespace) -> list[Judged]:
    """Return all cases of a draw, those of the cache first."""
    models = Models(given.preset, given.probe_share)
    mark = digest_json([given.preset, given.probe_share, sorted(draw.support)])[:8]
    cache = given.cache / f"{name}-{number}-{mark}.jsonl" if given.cache is not None else None
    lines = cache.read_text(encoding="utf-8").splitlines() if cache is not None and cache.exists() else []
    done = [Judged(**json.loads(line)) for line in lines]
    known = {one.case for one in done}
    left = [case for case in cases if case.patient in draw.others and case.case_id not in known]
    if left:
        support = support_of([case for case in cases if case.patient in draw.support], models)
        for one in judge(left, support, models):
            done.append(one)
            if cache is not None:
                cache.parent.mkdir(parents=True, exist_ok=True)
                with cache.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(one)) + "\n")
    return sorted(done, key=lambda one: one.case)


def repeat(cases: Sequence[Judged], draw: Draw, seed: int, settings: QualitySettings) -> Repeat:
    """Calibrate on one part of the patients and test on the other."""
    split = split_patients(sorted(draw.others), draw.calibration, seed)
    calibration = [_calibration(one) for one in cases if one.patient in split.held_out]
    test = [one for one in cases if one.patient in split.support]
    found = predict_quality(calibration, {one.case: one.signals for one in test}, settings, with_worth=False)
    known = [one for one in test if found.predicted[one.case] is not None]
    predicted = np.array([found.predicted[one.case] for one in known], dtype=np.float64)
    lower = np.array([found.lower[one.case] for one in known], dtype=np.float64)
    dice = np.array([one.dice for one in known])
    better = np.argsort(-lower, kind="stable")[: (len(known) + 1) // 2]
    level = statistics.fmean(one.dice for one in calibration)
    return Repeat(
        float(np.abs(predicted - dice).mean()),
        float(np.abs(level - dice).mean()),
        spearman(predicted, dice) or 0.0,
        float((dice >= lower).mean()),
        float(dice.mean()),
        float(dice[better].mean()),
        dice[lower >= settings.accept_dice].tolist(),
    )


def _calibration(one: Judged) -> CalibrationCase:
    return CalibrationCase(one.case, one.patient, one.signals, one.dice)


@dataclass(frozen=True)
class Result:
    """All repeats on one set."""

    name: str
    patients: str
    repeats: list[Repeat]
    cases: list[Judged]
    worth: tuple[SignalWorth, ...]

    def mean(self, field: str) -> float:
        """Return the mean of one figure over the repeats."""
        return statistics.fmean(getattr(one, field) for one in self.repeats)

    @property
    def added(self) -> float:
        """Seconds a case that prediction adds."""
        return statistics.fmean(one.prediction_s for one in self.cases)

    @property
    def share(self) -> float:
        """Prediction's time over segmentation's."""
        return sum(one.prediction_s for one in self.cases) / sum(one.segmentation_s for one in self.cases)

    def missed(self) -> list[str]:
        """Return the targets that are missed, as sentences."""
        mae, rank, covered = self.mean("mae"), self.mean("spearman"), self.mean("coverage")
        misses = {
            f"mean absolute error {mae:.3f} is above {MOST_MAE}": mae > MOST_MAE,
            f"Spearman {rank:.2f} is below {LEAST_SPEARMAN}": rank < LEAST_SPEARMAN,
            f"coverage {covered:.3f} is not in {COVERAGE[0]} to {COVERAGE[1]}": not COVERAGE[0]
            <= covered
            <= COVERAGE[1],
            f"prediction takes {self.share:.0%} of segmentation's time": self.share >= MOST_TIME,
        }
        return [f"{self.name}: {text}" for text, is_missed in misses.items() if is_missed]


def measure(name: str, root: Path, given: argparse.Namespace) -> Result:
    """Measure one set."""
    folder = root / name
    if not (folder / "images").is_dir():
        raise InputNotFoundError(f"no images in '{folder}'; set RFSS_DATA to the folder that holds {', '.join(SETS)}")
    cases = [
        case for case in discover(str(folder / "images"), str(folder / "labels"), ImagingSettings()).cases if case.label
    ]
    draws = draws_of(name, sorted({case.patient for case in cases}))
    settings = QualitySettings()
    results = [judged(name, number, draw, cases, given) for number, draw in enumerate(draws)]
    repeats = [
        repeat(results[seed % len(draws)], draws[seed % len(draws)], seed, settings) for seed in range(given.repeats)
    ]
    worth = predict_quality([_calibration(one) for one in results[0]], {}, settings).worth
    first = split_patients(sorted(draws[0].others), draws[0].calibration, 0)
    sizes = f"{len(draws[0].support)}/{len(first.held_out)}/{len(first.support)}"
    return Result(name, sizes, repeats, [one for found in results for one in found], worth)


def table(results: Sequence[Result]) -> list[str]:
    """Return the table as Markdown."""
    titles = ("set", "patients", "repeats", "Dice", "MAE", "mean's MAE", "Spearman", "coverage", "better half's Dice",
              "accepted", "their Dice", "added s/case", "of segmentation")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for one in results:
        accepted = [dice for each in one.repeats for dice in each.accepted]
        spread = statistics.stdev(each.mae for each in one.repeats) if len(one.repeats) > 1 else 0.0
        cells = [
            one.name,
            one.patients,
            str(len(one.repeats)),
            f"{one.mean('dice'):.3f}",
            f"{one.mean('mae'):.3f} ± {spread:.3f}",
            f"{one.mean('baseline_mae'):.3f}",
            f"{one.mean('spearman'):.2f}",
            f"{one.mean('coverage'):.3f}",
            f"{one.mean('better_half'):.3f}",
            str(len(accepted)),
            f"{statistics.fmean(accepted):.3f}" if accepted else "-",
            f"{one.added:.2f}",
            f"{one.share:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def worth_table(results: Sequence[Result]) -> list[str]:
    """Return what each signal is worth as Markdown: leave-one-patient-out over all cases of the first draw."""
    lines = ["| set | signal | Spearman, raw | MAE alone | MAE without it |", "|---|---|---|---|---|"]
    for one in results:
        for row in one.worth:
            without = "-" if row.mae_without is None else f"{row.mae_without:.4f}"
            raw = "-" if row.correlation is None else f"{row.correlation:+.2f}"
            lines.append(f"| {one.name} | {row.name} | {raw} | {row.mae_alone:.4f} | {without} |")
    return lines


def main() -> int:
    """Measure, print; see the module's text."""
    given = _arguments()
    root = Path(os.environ.get("RFSS_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
    try:
        results = [measure(name, root, given) for name in given.sets]
    except RfssError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    print("\n".join([*table(results), "", *worth_table(results)]))
    missed = [line for result in results for line in result.missed()]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    print(
        "\n"
        + "; ".join(
            f"{one.name}: MAE {one.mean('mae'):.3f}, Spearman {one.mean('spearman'):.2f}, coverage "
            f"{one.mean('coverage'):.3f}, Dice {one.mean('dice'):.3f} (better half {one.mean('better_half'):.3f}), "
            f"{one.added:.2f} s a case, {one.share:.0%} of segmentation"
            for one in results
        )
    )
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--probe-share", type=float, default=QualitySettings().probe_share)
    parser.add_argument("--cache", type=Path, default=None, help="keep judged cases here; none: measure all anew")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

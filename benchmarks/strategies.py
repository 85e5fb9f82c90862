r"""Retrieval strategies against each other on the same patients, support slices and queries.

    python benchmarks/strategies.py                          # phantoms (procedural, not patients)
    python benchmarks/strategies.py DATA [DATA ...] --seeds 0 1 --k 8 --support-slices 50 --test-patients 6 --queries 48

DATA holds ``images/`` and ``labels/``. A seed draws the test patients, the support slices (evenly over the other
patients) and the queries (evenly over the test patients, slices without any label among them); all strategies then
meet the same. Prints a Markdown table for each folder and ends with one line of key figures:

- agreement: mean Dice between a query's label map and those of the slices that serve it, over the query's classes;
- Dice: of the segmented queries, pooled over a patient's queries, mean over its classes, then over patients and seeds;
- against dino: mean of the paired differences in Dice over patients and seeds, with its standard error;
- ms a query: retrieval alone, with the query's own patch tokens where the strategy compares them.

Nothing is chosen on these figures: the strategies' parameters are the defaults. Exits 1 where ``dino`` does not agree
better than ``random``, 2 on input that cannot be used.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch.nn.functional import interpolate

from rfss_core.embedding import load_embedder
from rfss_core.errors import RfssError
from rfss_core.imaging import CaseSource, discover, estimate_window, normalise, read_image, read_label
from rfss_core.phantom import write_cohort
from rfss_core.presets import PRESETS
from rfss_core.quality import split_patients
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.segmentation import load_segmenter
from rfss_core.settings import EmbeddingSettings, ImagingSettings, RetrievalSettings, SegmentationSettings
from rfss_core.settings.retrieval import Strategy

STRATEGIES = get_args(Strategy)


@dataclass(frozen=True)
class Scores:
    """What one strategy reached with one seed."""

    agreement: float
    dice: dict[str, float]
    """By patient, mean over the classes that its queries show."""
    by_class: dict[int, list[float]]
    """For each class its patients' Dice."""
    retrieval_ms: float
    supports: float
    """Different slices a query."""


@dataclass(frozen=True, eq=False)
class Task:
    """The queries of one seed and what may serve them; both with embeddings and patch tokens."""

    support: SupportSet
    queries: SupportSet


class Models:
    """The preset's models, loaded once."""

    def __init__(self, preset: Any, segmenter: Any) -> None:
        self.embedder = load_embedder(EmbeddingSettings(), PRESETS[preset], "cpu")
        settings = SegmentationSettings(segmenter=segmenter, device="cpu")
        self.segmenter = load_segmenter(settings, PRESETS[preset])

    def embedded(self, slices: SupportSet) -> SupportSet:
        """Return the slices with embeddings and patch tokens."""
        images = [slices.image(i) for i in range(len(slices))]
        tokens = [one.astype(np.float16) for one in self.embedder.embed_patches(images)]
        return slices.with_embeddings(self.embedder.embed(images).astype(np.float16)).with_patches(tokens.__getitem__)


def slices_of(cases: Sequence[CaseSource], settings: ImagingSettings) -> SupportSet:
    """Read the labelled cases and return all their slices."""
    images, masks, patients, ids = [], [], [], []
    for case in cases:
        volume = read_image(case, settings)
        labels = read_label(case, volume.grid, settings)
        window = estimate_window(volume.pixels, settings)
        for z, (pixels, label) in enumerate(zip(volume.pixels, labels, strict=True)):
            images.append(normalise(pixels, window))
            masks.append(label)
            patients.append(case.patient)
            ids.append(f"{case.case_id}:{z:05d}")
    return SupportSet.from_arrays(images, masks, patients, ids=ids)


def tasks_of(folder: Path, models: Models, given: argparse.Namespace) -> Iterator[Task]:
    """Yield one task a seed."""
    settings = ImagingSettings()
    cases = [case for case in discover(str(folder / "images"), str(folder / "labels"), settings).cases if case.label]
    known = sorted({case.patient for case in cases})
    for seed in given.seeds:
        split = split_patients(known, min(given.test_patients, len(known) - 1) / len(known), seed)
        others = sorted(split.support)
        if given.support_patients < len(others):
            others = sorted(split_patients(others, given.support_patients / len(others), seed).held_out)
        support = slices_of([case for case in cases if case.patient in others], settings)
        queries = slices_of([case for case in cases if case.patient in split.held_out], settings)
        yield Task(
            models.embedded(support.sample(given.support_slices, seed)),
            models.embedded(queries.sample(given.queries, seed)),
        )


def measure(task: Task, strategy: Strategy, models: Models, given: argparse.Namespace, seed: int) -> Scores:
    """Retrieve and segment every query with one strategy."""
    support, queries = task.support, task.queries
    settings = RetrievalSettings(strategy=strategy)
    retriever = Retriever(support, settings, seed)
    images = [queries.image(i) for i in range(len(queries))]
    started = time.perf_counter()
    tokens = models.embedder.embed_patches(images) if settings.needs_patches else None
    found = retriever.search(queries.embeddings, queries.ids, queries.patients, given.k, patches=tokens)
    seconds = time.perf_counter() - started
    truths = [queries.mask(i) for i in range(len(queries))]
    agreements = [value for i, hit in enumerate(found) if (value := agreement(truths[i], hit, support)) is not None]
    segmented = models.segmenter.segment(images, found, support, keep_logits=False)
    pairs = [(one.labels, truth) for one, truth in zip(segmented, truths, strict=True)]
    by_patient, by_class = pooled_dice(pairs, queries.patients, support.class_values)
    return Scores(
        statistics.fmean(agreements),
        by_patient,
        by_class,
        1000 * seconds / len(queries),
        statistics.fmean(len(hit) for hit in found),
    )


def agreement(truth: np.ndarray, hit: Neighbours, support: SupportSet) -> float | None:
    """Return the mean Dice between a query's label map and its neighbours', over the query's classes."""
    scores = []
    for value in (int(value) for value in np.unique(truth) if value > 0 and value in support.classes):
        served = [_resized(support.mask(int(row)) == value, truth.shape) for row in hit.for_class(value)]
        scores.append(statistics.fmean(dice(truth == value, mask) for mask in served))
    return statistics.fmean(scores) if scores else None


def pooled_dice(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], patients: Sequence[str], classes: Sequence[int]
) -> tuple[dict[str, float], dict[int, list[float]]]:
    """Return Dice by patient (mean over classes) and by class, pooled over a patient's slices."""
    by_patient: dict[str, float] = {}
    by_class: dict[int, list[float]] = {value: [] for value in classes}
    for patient in sorted(set(patients)):
        own = [pair for pair, owner in zip(pairs, patients, strict=True) if owner == patient]
        found = np.concatenate([labels.ravel() for labels, _ in own])
        truth = np.concatenate([labels.ravel() for _, labels in own])
        scores = {value: dice(found == value, truth == value) for value in classes if (truth == value).any()}
        for value, score in scores.items():
            by_class[value].append(score)
        if scores:
            by_patient[patient] = statistics.fmean(scores.values())
    return by_patient, by_class


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Dice of two masks of which one at least is not empty."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if mask.shape == shape:
        return mask
    plane = torch.from_numpy(mask.astype(np.uint8))[None, None]
    return interpolate(plane, size=(shape[0], shape[1]), mode="nearest-exact")[0, 0].numpy() > 0


def table(results: dict[Strategy, list[Scores]]) -> list[str]:
    """Return the table of one folder as Markdown."""
    classes = list(next(iter(results.values()))[0].by_class)
    titles = ["strategy", "agreement", "Dice", "against dino", *(f"Dice {value}" for value in classes)]
    titles += ["slices a query", "ms a query"]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for strategy, runs in results.items():
        each = [_mean([score for run in runs for score in run.by_class[value]]) for value in classes]
        cells = [
            strategy,
            f"{statistics.fmean(run.agreement for run in runs):.3f}",
            f"{mean_dice(runs):.3f}",
            "" if strategy == "dino" or "dino" not in results else difference(runs, results["dino"]),
            *each,
            f"{statistics.fmean(run.supports for run in runs):.1f}",
            f"{statistics.fmean(run.retrieval_ms for run in runs):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def mean_dice(runs: Sequence[Scores]) -> float:
    """Return the mean over patients and seeds."""
    return statistics.fmean(score for run in runs for score in run.dice.values())


def difference(runs: Sequence[Scores], base: Sequence[Scores]) -> str:
    """Return the mean paired difference and its standard error."""
    pairs = [
        score - other.dice[patient]
        for run, other in zip(runs, base, strict=True)
        for patient, score in run.dice.items()
    ]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
    return f"{statistics.fmean(pairs):+.3f} ± {error:.3f}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else "n/a"


def main() -> int:
    """Measure and print; see the module's text."""
    given = _arguments()
    missed, figures = [], []
    try:
        models = Models(given.preset, given.segmenter)
        with tempfile.TemporaryDirectory(prefix="rfss-strategies-") as temporary:
            folders = given.folders
            if not folders:
                folders = [Path(temporary) / "phantoms"]
                write_cohort(folders[0], patients=8, seed=0)
            for folder in folders:
                results: dict[Strategy, list[Scores]] = {name: [] for name in given.strategies}
                for seed, task in zip(given.seeds, tasks_of(folder, models, given), strict=True):
                    for name, runs in results.items():
                        runs.append(measure(task, name, models, given, seed))
                print("\n".join([f"\n### {folder.name}\n", *table(results)]), flush=True)
                agreed = {name: statistics.fmean(run.agreement for run in runs) for name, runs in results.items()}
                if {"dino", "random"} <= set(agreed) and agreed["dino"] <= agreed["random"]:
                    missed.append(f"{folder.name}: dino agrees no better than random")
                figures.append(
                    f"{folder.name}: " + ", ".join(f"{name} {mean_dice(runs):.3f}" for name, runs in results.items())
                )
    except RfssError as error:
        print(f"strategies: {error}", file=sys.stderr)
        return 2
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    print("\n" + "; ".join(figures))
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folders", type=Path, nargs="*", help="each holds images/ and labels/ (default: phantoms)")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--segmenter", default="sam2-memory", choices=["sam2-memory", "label-fusion"])
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--support-slices", type=int, default=50)
    parser.add_argument("--support-patients", type=int, default=10, help="at most")
    parser.add_argument("--test-patients", type=int, default=6, help="at most")
    parser.add_argument("--queries", type=int, default=48, help="slices of the test patients, at most")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

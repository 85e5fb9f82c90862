r"""What to label next: does labelling what ``rfss select`` chooses beat labelling slices drawn at random?

For every seed the labelled patients are split; of the pool's slices n are chosen, by each objective of ``rfss select``
and at random (evenly over patients), and count as labelled; all support sets then label the same volumes of the test
patients. The choice sees embeddings alone, never a label.

    python benchmarks/selection.py                          # phantoms (procedural, not patients), a few minutes
    python benchmarks/selection.py DATA --n 20 50 --seeds 0 1 2 --test-patients 6 --out results/name

DATA holds ``images/`` and ``labels/``. Prints a Markdown table and ends with one line of key figures; writes OUT.json
(every measurement) and OUT.md. Exits 1 where a choice is not better than random choices at what it keeps small (mean or
largest distance of a slice of the pool to the nearest chosen one), 2 on input that cannot be used. Dice decides no exit
code: it is what is being asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.embedding import load_embedder
from rfss_core.errors import InputError, RfssError
from rfss_core.imaging import discover, estimate_window, normalise, read_image, read_label
from rfss_core.phantom import write_cohort
from rfss_core.presets import PRESETS
from rfss_core.quality import CaseMeasurement, case_metrics, split_patients, summarise
from rfss_core.retrieval import Retriever, SlicePool, SupportSet, choose_core_set, draw_evenly, unit_vectors
from rfss_core.segmentation import Segmenter, load_segmenter
from rfss_core.settings import (
    EmbeddingSettings,
    ImagingSettings,
    PresetName,
    QualitySettings,
    RetrievalSettings,
    SegmentationSettings,
    SelectionSettings,
)

METHODS = ("mean", "radius", "random")
"""Objectives of ``rfss select``, and slices drawn at random, evenly over patients."""


@dataclass(frozen=True, eq=False)
class Case:
    """One labelled volume in memory."""

    name: str
    patient: str
    slices: list[npt.NDArray[np.float32]]
    labels: npt.NDArray[np.uint8]
    """[Z, H, W]"""
    spacing: tuple[float, float, float]
    vectors: npt.NDArray[np.float32]
    """[Z, D]"""


@dataclass(frozen=True)
class Measurement:
    """One support set's Dice on the test patients of one seed."""

    seed: int
    n: int
    method: str
    segmenter: str
    dice: float
    """Mean over classes, cases and patients."""
    of_patients: dict[str, float]
    coverage: dict[str, float] = field(default_factory=dict)
    """Of the pool by the chosen slices: mean, p95, maximum."""
    with_class: float = 0.0
    """Share of the chosen slices that show any class."""


def read_cases(folder: Path, preset: PresetName, device: str) -> list[Case]:
    """Read and embed every labelled case of a folder."""
    imaging = ImagingSettings.model_validate({})
    embedder = load_embedder(EmbeddingSettings.model_validate({}), PRESETS[preset], device)
    found = discover(str(folder / "images"), str(folder / "labels"), imaging)
    cases = []
    for source in found.cases:
        if source.label is None:
            continue
        volume = read_image(source, imaging)
        window = estimate_window(volume.pixels, imaging)
        slices = list(normalise(volume.pixels, window))
        label = read_label(source, volume.grid, imaging)
        # As the store keeps them.
        vectors = embedder.embed(slices).astype(np.float16)
        cases.append(
            Case(source.case_id, source.patient, slices, label, volume.spacing, unit_vectors(np.asarray(vectors))[0])
        )
    return cases


class Pool:
    """The slices that could be labelled."""

    def __init__(self, cases: Sequence[Case], classes: dict[int, str]) -> None:
        rows = [(case, z) for case in cases for z in range(len(case.slices))]
        self.ids = [f"{case.name}:{z:05d}" for case, z in rows]
        self.patients = [case.patient for case, _ in rows]
        self.vectors = np.concatenate([case.vectors for case in cases])
        self.shown = np.array([bool(case.labels[z].any()) for case, z in rows])
        self.support = SupportSet(
            self.ids,
            self.patients,
            classes,
            lambda i: rows[i][0].slices[rows[i][1]],
            lambda i: rows[i][0].labels[rows[i][1]],
        ).with_embeddings(self.vectors)

    def choose(self, method: str, n: int, seed: int) -> tuple[npt.NDArray[np.int64], dict[str, float]]:
        """Return rows of n slices, and how they cover the pool."""
        settings = SelectionSettings.model_validate(
            {"n": n, "random_draws": 1, "objective": "mean" if method == "random" else method}
        )
        pool = SlicePool(self.vectors, self.ids, self.patients, np.zeros(len(self.ids), dtype=np.bool_))
        chosen = choose_core_set(pool, settings, seed)
        rows, last = chosen.rows, chosen.curve[-1]
        if method == "random":
            # The draw that the choice was compared with.
            rows, last = draw_evenly(self.ids, self.patients, n, seed), chosen.random_curve[-1]
        return rows, {"mean": last.mean, "p95": last.p95, "maximum": last.maximum}


def measure(
    support: SupportSet, tests: Sequence[Case], segmenter: Segmenter, k: int, classes: dict[int, str], seed: int
) -> tuple[float, dict[str, float]]:
    """Segment the test cases from a support set; return the mean Dice, and that of each patient."""
    retriever = Retriever(support, RetrievalSettings.model_validate({}), seed)
    found = []
    for case in tests:
        names = [f"{case.name}:{z:05d}" for z in range(len(case.slices))]
        neighbours = retriever.search(case.vectors, names, [case.patient] * len(names), k)
        results = segmenter.segment(case.slices, neighbours, support, keep_logits=False)
        labels = np.stack([result.labels for result in results])
        metrics = case_metrics(labels, case.labels, classes, case.spacing)
        found.append(CaseMeasurement(case.name, case.patient, tuple(metrics)))
    quality = QualitySettings.model_validate({"bootstrap": 100})
    whole = summarise(found, classes, quality, seed).dice["mean"].mean
    patients = sorted({case.patient for case in tests})
    of = {
        patient: statistics.fmean(measured.dice for measured in found if measured.patient == patient)
        for patient in patients
    }
    return float(whole or 0.0), of


def run(cases: Sequence[Case], given: argparse.Namespace) -> list[Measurement]:
    """Measure every method, number of slices and segmenter at every seed."""
    values = sorted({int(value) for case in cases for value in np.unique(case.labels) if value})
    classes = {value: str(value) for value in values}
    segmenters = {
        name: load_segmenter(
            SegmentationSettings.model_validate({"segmenter": name, "device": given.device}), PRESETS[given.preset]
        )
        for name in given.segmenters
    }
    patients = sorted({case.patient for case in cases})
    share = 0.3 if given.test_patients is None else given.test_patients / len(patients)
    measurements = []
    for seed in given.seeds:
        split = split_patients(patients, share, seed)
        pool = Pool([case for case in cases if case.patient in split.support], classes)
        tests = [case for case in cases if case.patient in split.held_out]
        for n in given.n:
            for method in given.methods:
                rows, covered = pool.choose(method, n, seed)
                support = pool.support.subset(rows)
                for name, segmenter in segmenters.items():
                    dice, of = measure(support, tests, segmenter, given.k, classes, seed)
                    shown = float(pool.shown[rows].mean())
                    measurements.append(Measurement(seed, n, method, name, dice, of, covered, shown))
                    print(f"seed {seed}, n {n}, {method}, {name}: {dice:.3f}", file=sys.stderr)
    return measurements


def table(found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return one record for each n, segmenter and method: means over seeds, and the difference from random."""
    records = []
    for n, segmenter, method in dict.fromkeys((m.n, m.segmenter, m.method) for m in found):
        rows = [m for m in found if (m.n, m.segmenter, m.method) == (n, segmenter, method)]
        others = {m.seed: m for m in found if (m.n, m.segmenter, m.method) == (n, segmenter, "random")}
        pairs = [
            dice - others[m.seed].of_patients[patient]
            for m in rows
            if m.seed in others
            for patient, dice in m.of_patients.items()
        ]
        against = method != "random" and len(pairs) > 1
        records.append(
            {
                "n": n,
                "segmenter": segmenter,
                "method": method,
                "seeds": len(rows),
                "dice": statistics.fmean(m.dice for m in rows),
                "dice_sd": statistics.stdev([m.dice for m in rows]) if len(rows) > 1 else None,
                "difference": statistics.fmean(pairs) if against else None,
                "difference_se": statistics.stdev(pairs) / len(pairs) ** 0.5 if against else None,
                "better": f"{sum(pair > 0 for pair in pairs)} of {len(pairs)}" if against else None,
                "with_class": statistics.fmean(m.with_class for m in rows),
                **{name: statistics.fmean(m.coverage[name] for m in rows) for name in ("mean", "p95", "maximum")},
            }
        )
    return records


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| n | segmenter | chosen by | seeds | Dice | against random | better | with class | mean | p95 | max |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        spread = "" if record["dice_sd"] is None else f" ± {record['dice_sd']:.3f}"
        apart = "" if record["difference"] is None else f"{record['difference']:+.3f} ({record['difference_se']:.3f})"
        cells = [record["n"], record["segmenter"], record["method"], record["seeds"], f"{record['dice']:.3f}{spread}"]
        cells += [apart, record["better"] or "", f"{record['with_class']:.0%}"]
        cells += [f"{record[name]:.3f}" for name in ("mean", "p95", "maximum")]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def missed(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return where a choice is no better than random at what it keeps small, as sentences."""
    random = {record["n"]: record for record in records if record["method"] == "random"}
    return [
        f"n = {record['n']}: {figure} distance {record[figure]:.3f} is not below random's {other[figure]:.3f}"
        for record in records
        if (figure := {"mean": "mean", "radius": "maximum"}.get(record["method"]))
        and (other := random.get(record["n"]))
        and record[figure] >= other[figure]
    ]


def main() -> int:
    """Measure, print, write; see the module's text."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="rfss-selection-") as temporary:
        folder = given.folder
        if folder is None:
            folder = Path(temporary)
            write_cohort(folder, patients=8, seed=0)
        try:
            cases = read_cases(folder, given.preset, given.device)
            if not cases:
                raise InputError(f"'{folder}' holds no labelled case")
            measurements = run(cases, given)
        except RfssError as error:
            print(f"selection: {error}", file=sys.stderr)
            return 2
    records = table(measurements)
    print(markdown(records))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"table": records, "measurements": [asdict(measured) for measured in measurements]}
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(markdown(records) + "\n", encoding="utf-8")
    problems = missed(records)
    for line in problems:
        print(f"missed: {line}", file=sys.stderr)
    print("; ".join(f"{r['method']} n = {r['n']} {r['segmenter']} {r['dice']:.3f}" for r in records))
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="holds images/ and labels/ (default: phantoms)")
    parser.add_argument("--n", type=int, nargs="+", default=[8, 20], help="slices to label")
    parser.add_argument("--methods", nargs="+", default=["mean", "radius", "random"], choices=METHODS)
    parser.add_argument("--segmenters", nargs="+", default=["label-fusion"], choices=["label-fusion", "sam2-memory"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-patients", type=int, default=None, help="default: 30 %% of all")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None, help="write OUT.json and OUT.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

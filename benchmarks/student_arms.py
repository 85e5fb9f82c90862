"""The arms of ``student.py``: what each student trains on, and the bundle that holds it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from student_bundle import EXPERT, Job, Part, write_bundle
from torch.nn.functional import interpolate

from rfss_core.datasets import PseudoLabelSet, load
from rfss_core.imaging import CaseSource, discover, estimate_window, normalise, read_image, read_label
from rfss_core.retrieval.draw import draw_evenly
from rfss_core.settings import ImagingSettings

FEW_EXPERTS = "few expert slices"
ACCEPTED = "+ accepted"
ALL_EXPERTS = "all expert labels"
MAIN = (FEW_EXPERTS, ACCEPTED, ALL_EXPERTS)
"""The arms of the issue; the others look for what limits the second."""
ARMS = (
    *MAIN,
    "+ accepted, ignore",
    "+ all, weighted",
    "+ all, weighted, ignore",
    "+ all, unweighted",
    "+ truly best",
    "+ accepted, experts' labels",
    "+ all, experts' labels",
)
IGNORE_LEVEL = 0.5
"""Voxels of at least this uncertainty are ignored where an arm ignores any."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One case on the bundle's grid."""

    case: str
    patient: str
    rows: list[int]


class Gathered:
    """All slices of some patients with their experts' labels, shrunk to the bundle's size.

    Args:
        data: holds ``images`` and ``labels``.
        patients: whose.
        longest: pixels that the longer side may have.
    """

    def __init__(self, data: Path, patients: frozenset[str], longest: int) -> None:
        settings = ImagingSettings()
        self.slices: list[tuple[str, str, npt.NDArray[np.uint8]]] = []
        self.truth: dict[int, npt.NDArray[np.uint8]] = {}
        self.volumes: dict[str, Volume] = {}
        self.sources: dict[str, CaseSource] = {}
        self._longest = longest
        for source in discover(str(data / "images"), str(data / "labels"), settings).cases:
            if source.patient not in patients or source.label is None:
                continue
            volume = read_image(source, settings)
            pixels = normalise(volume.pixels, estimate_window(volume.pixels, settings))
            labels = read_label(source, volume.grid, settings)
            rows = list(range(len(self.slices), len(self.slices) + len(pixels)))
            for z, (row, plane) in enumerate(zip(rows, pixels, strict=True)):
                self.slices.append((f"{source.case_id}:{z}", source.patient, shrunk_image(plane, longest)))
                self.truth[row] = self.fitted(labels[z])
            self.volumes[source.case_id] = Volume(source.case_id, source.patient, rows)
            self.sources[source.case_id] = source

    def of(self, patients: Sequence[str]) -> list[int]:
        """Return the rows of these patients, case by case."""
        wanted = set(patients)
        return [row for one in self.volumes.values() if one.patient in wanted for row in one.rows]

    def fitted(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Bring a label map [H, W] to the bundle's size."""
        size = _size(labels.shape, self._longest)
        plane = torch.from_numpy(np.ascontiguousarray(labels))[None, None]
        return np.asarray(interpolate(plane, size=size, mode="nearest-exact")[0, 0].numpy())


def shrunk_image(plane: npt.NDArray[np.float32], longest: int) -> npt.NDArray[np.uint8]:
    """Bring a slice [H, W] in [0, 1] to the bundle's size, 8 bits a pixel."""
    size = _size(plane.shape, longest)
    planes = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
    if size != plane.shape:
        planes = interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return np.asarray((planes[0, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def build_bundle(
    name: str,
    data: Path,
    labelled: Mapping[int, dict[str, Any]],
    work: Path,
    path: Path,
    training: Mapping[str, dict[str, Any]],
    longest: int,
    seeds: Sequence[int],
    arms: Sequence[str] = ARMS,
) -> None:
    """Write the bundle of all draws, seeds, arms and architectures.

    Args:
        name: of the data.
        data: holds ``images`` and ``labels``.
        labelled: draw -> what :func:`student_sets.label_pool` returned.
        work: folder that holds each draw's folder.
        path: the bundle.
        training: architecture -> settings of its training.
        longest: pixels that the longer side of a slice may have.
        seeds: of the trainings of each draw.
        arms: that are trained.
    """
    everybody = frozenset(
        patient for found in labelled.values() for part in found["parts"].values() for patient in part
    )
    gathered = Gathered(data, everybody, longest)
    values = sorted({int(value) for plane in gathered.truth.values() for value in np.unique(plane)} - {0})
    classes = {value: str(value) for value in values}
    labels: dict[str, dict[int, npt.NDArray[np.uint8]]] = {EXPERT: gathered.truth}
    jobs = []
    for draw, found in labelled.items():
        dataset = load(str(work / str(draw) / "workspace"), verify="labels", log_input=False)
        labels |= _pseudo_labels(dataset, gathered, draw, max(values) + 1)
        jobs += _jobs(dataset, gathered, labels, found, training, seeds)
    jobs = [job for job in jobs if job.arm in arms]
    # Every table needs the three arms of the issue with the first architecture; then the other arms.
    first = next(iter(training))
    jobs.sort(key=lambda job: (job.arm not in MAIN, job.architecture != first, job.seed, job.draw, ARMS.index(job.arm)))
    write_bundle(path, name, classes, gathered.slices, labels, jobs)


def _pseudo_labels(
    dataset: PseudoLabelSet, gathered: Gathered, draw: int, ignore: int
) -> dict[str, dict[int, npt.NDArray[np.uint8]]]:
    plain: dict[int, npt.NDArray[np.uint8]] = {}
    blind: dict[int, npt.NDArray[np.uint8]] = {}
    for case in dataset.cases(("accept", "review", "reject")):
        rows = gathered.volumes[case.id].rows
        sure, unsure = case.label(), case.label(IGNORE_LEVEL)
        unsure[unsure == dataset.ignore_value] = ignore
        plain |= {row: gathered.fitted(sure[z]) for z, row in enumerate(rows)}
        blind |= {row: gathered.fitted(unsure[z]) for z, row in enumerate(rows)}
    return {f"pseudo-{draw}": plain, f"ignore-{draw}": blind}


def _jobs(
    dataset: PseudoLabelSet,
    gathered: Gathered,
    labels: Mapping[str, Mapping[int, npt.NDArray[np.uint8]]],
    found: dict[str, Any],
    training: Mapping[str, dict[str, Any]],
    seeds: Sequence[int],
) -> list[Job]:
    parts, plan, draw = found["parts"], found["plan"], found["seed"]
    support = gathered.of(parts["support"])
    ids = [gathered.slices[row][0] for row in support]
    drawn = draw_evenly(ids, [gathered.slices[row][1] for row in support], plan["slices"], draw)
    experts = _experts(sorted(support[place] for place in drawn))
    validating = _experts(gathered.of(parts["calibration"]), validates=True)
    everything = dataset.cases(("accept", "review", "reject"))
    accepted = [case for case in everything if case.decision == "accept"]

    maps, truth = labels[f"pseudo-{draw}"], labels[EXPERT]

    def true_dice(case: Any) -> float:
        rows = gathered.volumes[case.id].rows
        stacks = (np.concatenate([kind[row].ravel() for row in rows]) for kind in (maps, truth))
        return mean_dice(*stacks, dataset.classes)

    best = sorted(everything, key=true_dice, reverse=True)[: len(accepted)]

    def pseudo(cases: Sequence[Any], kind: str, weighted: bool = True) -> Part:
        items = [(row, case.weight if weighted else 1.0) for case in cases for row in gathered.volumes[case.id].rows]
        return Part([row for row, _ in items], f"{kind}-{draw}", [weight for _, weight in items], expert=False)

    def oracle(cases: Sequence[Any]) -> Part:
        rows = [row for case in cases for row in gathered.volumes[case.id].rows]
        return Part(rows, EXPERT, [1.0] * len(rows), expert=False)

    own = {
        FEW_EXPERTS: [experts],
        ACCEPTED: [experts, pseudo(accepted, "pseudo")],
        ALL_EXPERTS: [_experts([*support, *gathered.of(parts["pool"])])],
        "+ accepted, ignore": [experts, pseudo(accepted, "ignore")],
        "+ all, weighted": [experts, pseudo(everything, "pseudo")],
        "+ all, weighted, ignore": [experts, pseudo(everything, "ignore")],
        "+ all, unweighted": [experts, pseudo(everything, "pseudo", weighted=False)],
        "+ truly best": [experts, pseudo(best, "pseudo")],
        "+ accepted, experts' labels": [experts, oracle(accepted)],
        "+ all, experts' labels": [experts, oracle(everything)],
    }
    test = gathered.of(parts["test"])
    first = next(iter(training))
    return [
        Job(draw, seed, arm, architecture, settings, [*one, validating], test)
        for seed in seeds
        for architecture, settings in training.items()
        for arm, one in own.items()
        if architecture == first or arm in MAIN
    ]


def mean_dice(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], classes: Mapping[int, str]) -> float:
    """Return the Dice of label maps of one shape, mean over the classes; 1 for a class that neither holds."""
    scores = []
    for value in classes:
        total = int((found == value).sum() + (truth == value).sum())
        scores.append(2 * int(((found == value) & (truth == value)).sum()) / total if total else 1.0)
    return statistics.fmean(scores)


def _experts(rows: list[int], *, validates: bool = False) -> Part:
    return Part(rows, EXPERT, [1.0] * len(rows), expert=True, validates=validates)


def _size(shape: Sequence[int], longest: int) -> tuple[int, int]:
    factor = min(1.0, longest / max(shape))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))

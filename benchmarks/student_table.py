"""Figures of ``student.py``: label maps against the experts' on their own grid, and the table over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from student_arms import ARMS, mean_dice
from student_bundle import Bundle, Job
from torch.nn.functional import interpolate, one_hot

from rfss_core.datasets import load
from rfss_core.imaging import CaseSource, discover, read_image, read_label
from rfss_core.quality import case_metrics
from rfss_core.settings import ImagingSettings


class Truth:
    """Experts' label maps of a folder, each read once.

    Args:
        data: holds ``images`` and ``labels``.
    """

    def __init__(self, data: Path) -> None:
        self._settings = ImagingSettings()
        cases = discover(str(data / "images"), str(data / "labels"), self._settings).cases
        self.sources: dict[str, CaseSource] = {case.case_id: case for case in cases if case.label is not None}
        self._known: dict[str, tuple[npt.NDArray[np.uint8], tuple[float, float, float]]] = {}

    def of(self, case: str) -> tuple[npt.NDArray[np.uint8], tuple[float, float, float]]:
        """Return label map [Z, H, W] and spacing in mm of a case."""
        if case not in self._known:
            volume = read_image(self.sources[case], self._settings)
            self._known[case] = (read_label(self.sources[case], volume.grid, self._settings), volume.spacing)
        return self._known[case]


def measure(bundle: Bundle, results: Path, data: Path) -> list[dict[str, Any]]:
    """Measure all networks that were trained; what was measured before is read.

    Args:
        bundle: with the jobs.
        results: folder of their label maps.
        data: the experts' labels.

    Returns:
        One record a network: arm, architecture, seed, Dice and HD95 per class and ``mean`` (mean over test patients),
        steps, seconds, device.
    """
    truth, rows = Truth(data), []
    for place, job in enumerate(bundle.jobs):
        path, known = results / f"{place}.npz", results / f"{place}.json"
        if not path.exists():
            continue
        if not known.exists():
            known.write_text(json.dumps(_measured(bundle, job, path, truth)))
        rows.append(json.loads(known.read_text()))
    return rows


def summary_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one record an architecture and arm: means and standard deviations over networks, and the paired gain."""
    table = []
    for architecture in dict.fromkeys(row["architecture"] for row in rows):
        mine = [row for row in rows if row["architecture"] == architecture]
        base = {(row["draw"], row["seed"]): row["dice"]["mean"] for row in mine if row["arm"] == ARMS[0]}
        for arm in ARMS:
            found = [row for row in mine if row["arm"] == arm]
            if not found:
                continue
            dice = [row["dice"]["mean"] for row in found]
            gains = [
                row["dice"]["mean"] - base[row["draw"], row["seed"]]
                for row in found
                if (row["draw"], row["seed"]) in base
            ]
            table.append(
                {
                    "architecture": architecture,
                    "arm": arm,
                    "networks": len(found),
                    "slices": statistics.fmean(row["slices"] for row in found),
                    "dice": statistics.fmean(dice),
                    "dice_sd": statistics.stdev(dice) if len(dice) > 1 else None,
                    "gain": statistics.fmean(gains) if gains else None,
                    "gains": gains,
                    "classes": {
                        name: statistics.fmean(row["dice"][name] for row in found)
                        for name in found[0]["dice"]
                        if name != "mean"
                    },
                    "hd95": statistics.fmean(row["hd95"]["mean"] for row in found),
                    "train_seconds": statistics.fmean(row["train_seconds"] for row in found),
                }
            )
    return table


def pool_quality(labelled: Mapping[int, dict[str, Any]], work: Path, data: Path) -> list[dict[str, Any]]:
    """Return, a draw, how good the pseudo-labels of the pool are against the experts' labels, which no run saw."""
    truth, found = Truth(data), []
    for draw, about in labelled.items():
        dataset = load(str(work / str(draw) / "workspace"), verify="none", log_input=False)
        dice = {}
        for case in dataset.cases(("accept", "review", "reject")):
            labels, _ = truth.of(case.id)
            dice[case.id] = (mean_dice(case.label(), labels, dataset.classes), case.decision)
        accepted = [value for value, decision in dice.values() if decision == "accept"]
        found.append(
            {
                "draw": draw,
                "accept_dice": about["accept_dice"],
                "cases": len(dice),
                "dice": statistics.fmean(value for value, _ in dice.values()),
                "accepted": len(accepted),
                "accepted_dice": statistics.fmean(accepted) if accepted else None,
            }
        )
    return found


def markdown(name: str, table: Sequence[Mapping[str, Any]], pools: Sequence[Mapping[str, Any]]) -> str:
    """Return both tables as Markdown."""
    lines = [
        f"Pseudo-labels of {name} (true Dice, known here because experts labelled the pool too):",
        "",
        "| draw | accept_dice | cases | Dice | accepted | their Dice |",
        "|---|---|---|---|---|---|",
        *(
            f"| {pool['draw']} | {pool['accept_dice']:.3f} | {pool['cases']} | {pool['dice']:.3f} | "
            f"{pool['accepted']} | {_text(pool['accepted_dice'])} |"
            for pool in pools
        ),
        "",
        f"Students on {name}, test patients:",
        "",
        students_markdown(table),
    ]
    return "\n".join(lines)


def students_markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of :func:`summary_table` as Markdown."""
    classes = list(table[0]["classes"])
    titles = " | ".join(f"Dice {one}" for one in classes)
    lines = [
        f"| network | trained on | slices | networks | Dice | gain | {titles} | HD95 mm |",
        "|---|---|---|---|---|---|" + "---|" * (len(classes) + 1),
    ]
    for line in table:
        spread = "" if line["dice_sd"] is None else f" ± {line['dice_sd']:.3f}"
        gain = "" if line["gain"] is None or line["arm"] == ARMS[0] else f"{line['gain']:+.3f}"
        scores = " | ".join(f"{line['classes'][one]:.3f}" for one in classes)
        lines.append(
            f"| {line['architecture']} | {line['arm']} | {line['slices']:.0f} | {line['networks']} | "
            f"{line['dice']:.3f}{spread} | {gain} | {scores} | {line['hd95']:.1f} |"
        )
    return "\n".join(lines)


def _measured(bundle: Bundle, job: Job, path: Path, truth: Truth) -> dict[str, Any]:
    with np.load(path) as stored:
        labels, about = stored["labels"], json.loads(stored["about"].tobytes())
    planes: dict[str, list[npt.NDArray[np.uint8]]] = {}
    start = 0
    for row in job.test:
        height, width = bundle.shape(row)
        planes.setdefault(bundle.ids[row].rsplit(":", 1)[0], []).append(
            labels[start : start + height * width].reshape(height, width)
        )
        start += height * width
    dice: dict[str, dict[str, list[float]]] = {}
    far: dict[str, list[float]] = {}
    for case, found in planes.items():
        expert, spacing = truth.of(case)
        native = enlarged(np.stack(found), (expert.shape[1], expert.shape[2]), max(bundle.classes))
        metrics = case_metrics(native, expert, bundle.classes, spacing)
        patient = truth.sources[case].patient
        for metric in metrics:
            dice.setdefault(metric.name, {}).setdefault(patient, []).append(metric.dice)
        far.setdefault(patient, []).append(statistics.fmean(metric.hd95 for metric in metrics))
    scores = {name: _over_patients(found) for name, found in dice.items()}
    return {
        "arm": job.arm,
        "architecture": job.architecture,
        "draw": job.draw,
        "seed": job.seed,
        "slices": sum(len(part.rows) for part in job.parts if not part.validates),
        "dice": {**scores, "mean": statistics.fmean(scores.values())},
        "hd95": {"mean": _over_patients(far)},
        "steps": about["rounds"][-1]["step"],
        "train_seconds": about["train_seconds"],
        "device": about["device"],
        "weights": about["weights"],
    }


def enlarged(labels: npt.NDArray[np.uint8], size: tuple[int, int], highest: int) -> npt.NDArray[np.uint8]:
    """Bring label maps [Z, h, w] to [Z, H, W]: each class's mask bilinearly, the largest wins."""
    if labels.shape[1:] == size:
        return labels
    masks = one_hot(torch.from_numpy(labels).long(), highest + 1).movedim(-1, 1).float()
    grown = interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return np.asarray(grown.argmax(1).to(torch.uint8).numpy())


def _over_patients(found: Mapping[str, Sequence[float]]) -> float:
    return statistics.fmean(statistics.fmean(values) for values in found.values())


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"

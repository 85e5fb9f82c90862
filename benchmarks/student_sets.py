"""Patients of one seed of ``student.py``, and the pseudo-labels that a real ``rfss label`` makes from few of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rfss_core.errors import InputError, RfssError, SettingsError
from rfss_core.imaging import CaseSource, discover
from rfss_core.quality import split_patients
from rfss_core.settings import ImagingSettings

DATASET = "student"
GATE_FAILED = 3


@dataclass(frozen=True)
class Plan:
    """How many patients play which part, and what the labelling runs use."""

    support: int = 3
    """Patients that the expert slices come from."""
    calibration: int = 7
    """Expert-labelled patients that calibrate predicted quality, choose what is accepted, and stop the training."""
    pool: int = 13
    """Patients that the run labels."""
    test: int = 7
    """Patients on whom students are measured, and whom nothing else sees."""
    slices: int = 50
    """Expert slices that serve and train."""
    preset: str = "tiny"
    confidence: float = 0.8
    """Of the lower bound on Dice. A bound at 0.9 needs 9 calibration patients, one at 0.8 needs 4."""
    accept_dice: float = 0.8
    accept_share: float = 0.5
    """Where no case reaches ``accept_dice``, the bound that so many of the calibration cases reach is taken instead."""


@dataclass(frozen=True)
class Parts:
    """Patients of one seed."""

    support: tuple[str, ...]
    calibration: tuple[str, ...]
    pool: tuple[str, ...]
    test: tuple[str, ...]


def draw_parts(patients: Sequence[str], plan: Plan, seed: int) -> Parts:
    """Give every patient at most one part; all splits are by the project's one function.

    Args:
        patients: of the labelled cases.
        plan: how many of each.
        seed: of the draw.

    Raises:
        InputError: there are too few.
    """
    everybody = sorted(set(patients))
    needed = plan.support + plan.calibration + plan.pool + plan.test
    if needed > len(everybody):
        raise InputError(f"{needed} patients are needed, but {len(everybody)} are labelled; ask for fewer")
    first = split_patients(everybody, plan.test / len(everybody), seed)
    rest = sorted(first.support)
    labelled = plan.support + plan.calibration
    second = split_patients(rest, labelled / len(rest), seed + 1)
    # As `rfss label` divides the labelled patients at this seed.
    third = split_patients(sorted(second.held_out), plan.calibration / labelled, seed)
    pool = (
        sorted(split_patients(sorted(second.support), plan.pool / len(second.support), seed).held_out)
        if (plan.pool < len(second.support))
        else sorted(second.support)
    )
    return Parts(
        tuple(sorted(third.support)), tuple(sorted(third.held_out)), tuple(pool), tuple(sorted(first.held_out))
    )


def label_pool(data: Path, plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    """Run ``rfss label`` where only the labelled patients have labels; again, more lenient, if none is accepted.

    A folder that is done is read. What was interrupted goes on.

    Args:
        data: holds ``images`` and ``labels``.
        plan: patients and settings.
        seed: of the draw and of the run.
        folder: gets ``images``, ``labels`` ``workspace`` and ``label.json``.

    Returns:
        What stands in ``label.json``: parts, plan, commands, the accepted threshold and the summary of the last run.
    """
    done = folder / "label.json"
    cases = discover(str(data / "images"), str(data / "labels"), ImagingSettings()).cases
    parts = draw_parts([case.patient for case in cases if case.label is not None], plan, seed)
    said = {"plan": asdict(plan), "parts": {name: list(part) for name, part in asdict(parts).items()}, "seed": seed}
    if done.is_file():
        known: dict[str, Any] = json.loads(done.read_text())
        if all(known[name] == value for name, value in said.items()):
            return known
        raise SettingsError(f"'{folder}' holds another plan; take an empty --work folder")
    _copy(cases, parts, folder)
    threshold, commands = plan.accept_dice, []
    summary, command = _label(folder, plan, seed, threshold)
    commands.append(command)
    if not summary["decisions"]["accept"]:
        threshold = attainable(json.loads((folder / "workspace/quality/quality.json").read_text()), plan.accept_share)
        summary, command = _label(folder, plan, seed, threshold)
        commands.append(command)
    found = said | {"accept_dice": threshold, "commands": commands, "summary": summary}
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def attainable(quality: dict[str, Any], share: float) -> float:
    """Return the highest bound that at least ``share`` of the calibration cases reach, rounded down to 0.001.

    Args:
        quality: content of the workspace's ``quality/quality.json``.
        share: of the calibration cases, above 0 to 1.

    Raises:
        InputError: there is no prediction.
    """
    curve = quality["acceptance"]
    reached = [point["least_lower"] for point in curve if point["accepted"] >= share - 1e-9]
    if not reached:
        raise InputError("the run made no prediction of quality: it needs 5 calibration patients or more")
    return max(0.001, int(1000 * max(reached)) / 1000)


def _label(folder: Path, plan: Plan, seed: int, threshold: float) -> tuple[dict[str, Any], str]:
    labelled = plan.support + plan.calibration
    settings = {
        "quality": {
            "accept_dice": threshold,
            "reject_dice": min(0.5, threshold),
            "confidence": plan.confidence,
            "min_dice": 0.0,
        },
    }
    config = folder / f"accept-{threshold:.3f}.yaml"
    config.write_text(yaml.safe_dump(settings))
    options = {
        "--labels": folder / "labels",
        "--workspace": folder / "workspace",
        "--preset": plan.preset,
        "--support-slices": plan.slices,
        "--held-out": round(plan.calibration / labelled, 4),
        "--seed": seed,
        "--dataset": DATASET,
        "--config": config,
    }
    given = ["label", str(folder / "images"), *(str(part) for pair in options.items() for part in pair)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    code = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "flows.cli", *given], check=False, env=environment
    ).returncode
    if code not in (0, GATE_FAILED):
        raise RfssError(f"rfss {' '.join(given)} ended with exit code {code}")
    summary: dict[str, Any] = json.loads((folder / "workspace/summary.json").read_text())
    return summary, "rfss " + " ".join(given)


def _copy(cases: Sequence[CaseSource], parts: Parts, folder: Path) -> None:
    """Copy images of labelled and pool patients, and labels of the labelled ones: a test patient is nowhere."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for case in cases:
        wanted = [("images", case.image)] if case.patient in {*parts.support, *parts.calibration, *parts.pool} else []
        if case.label is not None and case.patient in {*parts.support, *parts.calibration}:
            wanted.append(("labels", case.label))
        for name, path in wanted:
            shutil.copyfile(str(path), folder / name / Path(str(path)).name)

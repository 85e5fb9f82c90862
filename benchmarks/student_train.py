r"""Trains the networks of ``student.py``'s bundles, several side by side, here or on a machine that has a GPU.

    python benchmarks/student_train.py BUNDLE [BUNDLE ...] --out RESULTS --minutes 4 --processes 14

Needs PyTorch, MONAI, transformers, pydantic and this repository, nothing of Prefect or MLflow. Each network's label
maps of the test slices are kept as soon as they are there (``RESULTS/NAME/<place>.npz``), so a run that was stopped
goes on; networks that were not begun in time are left out. Exit code 1: a network failed, the line says which.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import side_by_side
from student_bundle import Bundle, TrainingSlices

from rfss_core.settings import SupervisedSettings
from rfss_core.training import Provenance, SupervisedSegmenter, train_supervised


def train_job(path: Path, place: int, device: str, folder: Path) -> dict[str, Any]:
    """Train one network and keep its label maps. Runs in a process of its own."""
    torch.set_num_threads(1)
    bundle, chosen = Bundle(path), torch.device(device)
    job = bundle.jobs[place]
    data = TrainingSlices(bundle, job.parts)
    flags = [(part, weight) for part in job.parts for weight in part.weights]
    provenance = Provenance(
        weights=[weight for _, weight in flags],
        expert=[part.expert for part, _ in flags],
        ignore=bundle.ignore,
        validates=[part.validates for part, _ in flags],
    )
    started = time.perf_counter()
    model, rounds = train_supervised(
        data,
        job.architecture,
        SupervisedSettings.model_validate(job.training),
        seed=job.seed,
        device=chosen,
        provenance=provenance,
    )
    trained = time.perf_counter()
    queries = [bundle.image(row) for row in job.test]
    found = SupervisedSegmenter(model, chosen).label(queries)
    about = {
        "job": job.name,
        "weights": model.digest,
        "train_seconds": round(trained - started, 2),
        "segment_seconds": round(time.perf_counter() - trained, 2),
        "rounds": [asdict(one) for one in rounds],
        "device": torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    content = {
        "labels": np.concatenate([one.labels.ravel() for one in found]),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    half_written = folder / f"{place}.tmp.npz"
    np.savez_compressed(half_written, **content)  # type: ignore[arg-type]
    half_written.replace(folder / f"{place}.npz")
    return about


def train_all(paths: Sequence[Path], out: Path, minutes: float, processes: int, device: str) -> int:
    """Train what is not there yet, until the time is up; return 1 where a network failed."""
    bundles, jobs = {path: Bundle(path) for path in paths}, {}
    # Bundle after bundle at each place: what every table needs stands first in each.
    for place in range(max(len(bundle.jobs) for bundle in bundles.values())):
        for path, bundle in bundles.items():
            folder = out / bundle.name
            folder.mkdir(parents=True, exist_ok=True)
            if place < len(bundle.jobs) and not (folder / f"{place}.npz").exists():
                jobs[f"{bundle.name}: {bundle.jobs[place].name}"] = (path, place, device, folder)

    def finished(name: str, about: dict[str, Any]) -> str:
        return f"{name}: {about['rounds'][-1]['step']} steps in {about['train_seconds']:.0f} s, {about['device']}"

    failed = side_by_side(train_job, jobs, processes=processes, seconds=60 * minutes, finished=finished)
    for bundle in bundles.values():
        there = sum(one.stem.isdigit() for one in (out / bundle.name).glob("*.npz"))
        print(f"{bundle.name}: {there} of {len(bundle.jobs)} networks", flush=True)
    return 1 if failed else 0


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    return train_all(given.bundles, given.out, given.minutes, given.processes, given.device)


if __name__ == "__main__":
    sys.exit(main())

r"""Trains the networks of ``student.py``'s bundles, several side by side, here or on a machine that has a GPU.

    python benchmarks/student_train.py BUNDLE [BUNDLE ...] --out RESULTS --minutes 4 --processes 14

Needs PyTorch, MONAI, transformers, pydantic and this repository, nothing of Prefect or MLflow. Each network's label
maps of the test slices are kept as soon as they are there (``RESULTS/NAME/<place>.npz``), so a run that was stopped
goes on; networks that were not begun in time are left out. Exit code 1: a network failed, the line says which.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from student_bundle import Bundle, TrainingSlices

from rfss_core.settings import SupervisedSettings
from rfss_core.training import Provenance, SupervisedSegmenter, train_supervised


@dataclass(frozen=True)
class Near:
    """What a network makes of its neighbours: nothing."""

    indices: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]

    def for_class(self, value: int, /) -> npt.NDArray[np.int64]:  # noqa: ARG002 - the same for every class
        """Return all of them."""
        return self.indices


def train_job(path: Path, place: int, device: str, folder: Path, deadline: float) -> dict[str, Any] | None:
    """Train one network and keep its label maps; None where the time is up. Runs in a process of its own."""
    if time.time() > deadline:
        return None
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
    near = Near(np.array([0]), np.zeros(1, np.float32))
    found = SupervisedSegmenter(model, chosen).segment(queries, [near] * len(queries), data, keep_logits=False)
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
    """Train what is not there yet, until the time is up."""
    deadline = time.time() + 60 * minutes
    waiting, failed = {}, 0
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        bundles = {path: Bundle(path) for path in paths}
        # Bundle after bundle at each place: what every table needs stands first in each.
        for place in range(max(len(bundle.jobs) for bundle in bundles.values())):
            for path, bundle in bundles.items():
                folder = out / bundle.name
                folder.mkdir(parents=True, exist_ok=True)
                if place < len(bundle.jobs) and not (folder / f"{place}.npz").exists():
                    future = pool.submit(train_job, path, place, device, folder, deadline)
                    waiting[future] = f"{bundle.name}: {bundle.jobs[place].name}"
        names = {bundle.name: len(bundle.jobs) for bundle in bundles.values()}
        try:
            for number, future in enumerate(as_completed(waiting, timeout=max(1.0, deadline - time.time())), 1):
                if (error := future.exception()) is not None:
                    failed += 1
                    print(f"failed: {waiting[future]}: {error}", file=sys.stderr, flush=True)
                elif (about := future.result()) is not None:
                    print(
                        f"{number}/{len(waiting)} {waiting[future]}: {about['rounds'][-1]['step']} steps in "
                        f"{about['train_seconds']:.0f} s, {about['device']}",
                        flush=True,
                    )
        except TimeoutError:
            print("time is up", file=sys.stderr, flush=True)
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
    for name, number in names.items():
        print(
            f"{name}: {sum(one.stem.isdigit() for one in (out / name).glob('*.npz'))} of {number} networks", flush=True
        )
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

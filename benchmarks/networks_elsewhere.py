r"""Trains the supervised rows of a study on a machine that has a GPU and little else, and brings the figures home.

    python benchmarks/networks_elsewhere.py write STUDY --images I --labels L --out STUDIES --bundle BUNDLE
    python benchmarks/networks_elsewhere.py train BUNDLE [BUNDLE ...] --out RESULTS --minutes 4      # there
    python benchmarks/networks_elsewhere.py collect BUNDLE RESULTS/NAME.npz --out STUDIES

``write`` puts the exact slices of each row's splits, 8 bits a pixel, into one file. ``train`` needs PyTorch, MONAI,
pydantic and this repository; several networks train side by side, and what is not done in time is left out. ``collect``
measures the label maps that came back against the truth here, and keeps each as a finished row of
``rfss study --out STUDIES``, with the device's name in it.
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
import numpy.typing as npt
import torch
from networks_bundle import Bundle, Job, Slices
from side_by_side import side_by_side

from rfss_core.code import code_version
from rfss_core.settings import SupervisedSettings
from rfss_core.training import SupervisedSegmenter, train_supervised

COMMAND = "python benchmarks/networks_elsewhere.py train BUNDLE --out RESULTS"

Trained = tuple[int, dict[str, Any], npt.NDArray[np.uint8]]
"""Place of a network among the jobs, what is known of it, its label maps."""


def train(path: Path, place: int, device: str) -> Trained:
    """Train one network and label its test slices; runs in a process of its own."""
    torch.set_num_threads(1)
    bundle = Bundle(path)
    job, chosen = bundle.jobs[place], torch.device(device)
    support = Slices(bundle, job.support)
    settings = SupervisedSettings.model_validate(job.training)
    started = time.perf_counter()
    model, rounds = train_supervised(support, job.architecture, settings, seed=job.seed, device=chosen)
    trained = time.perf_counter()
    segmenter = SupervisedSegmenter(model, chosen)
    found = segmenter.label([bundle.image(row) for row in job.test])
    labels = np.concatenate([one.labels.ravel() for one in found])
    about = {
        "weights": segmenter.digest,
        "train_seconds": trained - started,
        "segment_seconds": time.perf_counter() - trained,
        "rounds": [asdict(one) for one in rounds],
        "device": torch.cuda.get_device_name() if chosen.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "code": code_version("imaging", "training"),
    }
    return place, about, labels


def results_of(path: Path) -> list[Trained]:
    """Return what an earlier :func:`train_all` finished: place, what is known, label maps; nothing where no file is."""
    if not path.exists():
        return []
    with np.load(path) as stored:
        about = json.loads(stored["about"].tobytes())
        return [(int(place), one, stored[f"labels{place}"]) for place, one in about.items()]


def train_all(
    paths: Sequence[Path], out: Path, minutes: float, processes: int, device: str, earlier: Path | None = None
) -> int:
    """Train the jobs of all bundles side by side until the time is up; write ``out/NAME.npz`` for each bundle.

    What ``earlier``, the results folder of another call with the same bundles, holds is not trained again.
    """
    out.mkdir(parents=True, exist_ok=True)
    bundles = {path: Bundle(path) for path in paths}
    before = earlier or out
    done = {path: results_of(before / f"{bundle.name}.npz") for path, bundle in bundles.items()}
    jobs = {
        (path, place): (path, place, device)
        for path, bundle in bundles.items()
        for place in range(len(bundle.jobs))
        if place not in {one for one, _, _ in done[path]}
    }

    def finished(key: tuple[Path, int], found: Trained) -> str:
        path, place = key
        done[path].append(found)
        job, about = bundles[path].jobs[place], found[1]
        took = f"{about['rounds'][-1]['step']} steps in {about['train_seconds']:.0f} s, {about['device']}"
        return f"{bundles[path].name}: {job.label}, seed {job.seed}: {took}"

    failed = side_by_side(train, jobs, processes=processes, seconds=60 * minutes, finished=finished)
    for path, found in done.items():
        content = {f"labels{place}": labels for place, _, labels in found}
        about = json.dumps({str(place): one for place, one, _ in found}).encode()
        np.savez_compressed(out / f"{bundles[path].name}.npz", about=np.frombuffer(about, np.uint8), **content)
        print(f"{bundles[path].name}: {len(found)} of {len(bundles[path].jobs)} networks", flush=True)
    sys.stdout.flush()
    return 1 if failed else 0


def write(given: argparse.Namespace) -> int:
    """Write the bundle of a study's supervised rows."""
    from flows.session import command_session
    from flows.study import place_of, prepare
    from rfss_core.settings import SUPERVISED, read_mapping
    from rfss_core.store import Manifest, Workspace
    from rfss_core.store.files import Files
    from rfss_core.study import load_study, plan_study
    from rfss_core.study.check import labelled_slices, split_of, support_slices

    shared = {} if given.config is None else read_mapping(given.config, "configuration file")
    study = load_study(given.study, {"images": given.images, "labels": given.labels, "settings": shared})
    place = place_of(Files(given.out))
    plan = plan_study(study, place)
    with command_session(place, verbose=False):
        checked = prepare(study, given.out)
    workspace = Workspace.open(place)
    manifest = Manifest.read(workspace.files)
    slices = labelled_slices(manifest)
    patients = manifest.cases.loc[manifest.cases["labelled"], "patient"].tolist()
    jobs = []
    for row, data in zip(plan.rows, checked.data, strict=True):
        if row.settings.segmentation.segmenter not in SUPERVISED:
            continue
        split = split_of(row, patients)
        # As stage index stores them.
        support = support_slices(row, slices, split).sort_values(["case_id", "z"])
        test = slices[slices["patient"].isin(split.held_out)]
        jobs.append(
            Job(
                row.inputs_fingerprint(data),
                row.label,
                row.seed,
                row.settings.segmentation.segmenter,
                row.settings.training.model_dump(mode="json"),
                [int(one) for one in support.index],
                [int(one) for one in test.index],
            )
        )
    used = sorted({row for job in jobs for row in (*job.support, *job.test)})
    new = {old: place for place, old in enumerate(used)}
    table = slices.loc[used]
    images, labels, shapes = [], [], []
    for case_id, group in table.groupby("case_id", sort=True):
        case, places = workspace.case(str(case_id)), group["z"].to_numpy()
        planes, maps = case.read_slices()[places], case.read_labels()[places]
        for plane, mask in zip(planes, maps, strict=True):
            images.append(np.round(plane * 255).astype(np.uint8).ravel())
            labels.append(mask.ravel())
            shapes.append(mask.shape)
    sizes = [len(plane) for plane in labels]
    names = plan.rows[0].settings.imaging.classes or {}
    values = sorted({int(value) for present in manifest.cases["classes"] for value in present})
    about = {
        "name": f"{given.bundle.stem}",
        "study": study.model_dump(mode="json"),
        "classes": {value: names.get(value, str(value)) for value in values},
        "ids": table["slice_id"].tolist(),
        "patients": table["patient"].tolist(),
        "jobs": [
            {**asdict(job), "support": [new[row] for row in job.support], "test": [new[row] for row in job.test]}
            for job in jobs
        ],
    }
    given.bundle.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        given.bundle,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        images=np.concatenate(images),
        labels=np.concatenate(labels),
        shapes=np.array(shapes),
        starts=np.cumsum([0, *sizes[:-1]]),
    )
    print(f"{given.bundle}: {len(jobs)} networks, {len(used)} slices, {given.bundle.stat().st_size / 2**20:.1f} MiB")
    return 0


def collect(given: argparse.Namespace) -> int:
    """Measure what came back, and keep it as finished rows."""
    from networks_measured import keep

    return keep(Bundle(given.bundles[0]), given.results, given.out, COMMAND, other_code=given.other_code)


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parts = parser.add_subparsers(dest="part", required=True)
    writing = parts.add_parser("write", help="put the slices of a study's supervised rows into a file")
    writing.add_argument("study")
    writing.add_argument("--images", default=None)
    writing.add_argument("--labels", default=None)
    writing.add_argument("--config", type=Path, default=None)
    writing.add_argument("--out", required=True, help="the studies' output folder")
    writing.add_argument("--bundle", type=Path, required=True)
    training = parts.add_parser("train", help="train the networks")
    training.add_argument("bundles", type=Path, nargs="+")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=4.0)
    training.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    training.add_argument("--earlier", type=Path, help="results of a call that ran out of time: the rest is trained")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    collecting = parts.add_parser("collect", help="keep the results as rows of the study")
    collecting.add_argument("bundles", type=Path, nargs=1)
    collecting.add_argument("results", type=Path)
    collecting.add_argument("--out", required=True, help="the studies' output folder")
    collecting.add_argument(
        "--other-code", action="store_true", help="keep networks of other code versions too; their rows name it"
    )
    given = parser.parse_args()
    if given.part == "train":
        return train_all(given.bundles, given.out, given.minutes, given.processes, given.device, given.earlier)
    return write(given) if given.part == "write" else collect(given)


if __name__ == "__main__":
    sys.exit(main())

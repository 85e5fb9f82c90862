r"""Do pseudo-labels help? A student on 50 expert slices, with pseudo-labels added, and on all expert labels.

For every draw the patients are split: a few support patients (50 slices), calibration patients, a pool, and test
patients whom nothing but the final measurement sees. A real ``rfss label`` run, where only support and calibration
patients have labels, labels the pool. Then one network an arm is trained:

    few expert slices              the few labels alone (50)
    + accepted                     and the accepted pseudo-labels, weighted by confidence
    all expert labels              all slices of support and pool patients, experts' labels
    + accepted, ignore             uncertain voxels teach nothing
    + all, weighted [, ignore]     all pseudo-labels, not only the accepted ones
    + all, unweighted              the same without weights
    + truly best                   oracle: as many cases, chosen by their true Dice instead of the predicted one
    + accepted, experts' labels    oracle: the accepted cases with their experts' labels
    + all, experts' labels         oracle: the whole pool with its experts' labels

All arms validate (early stopping) on the calibration patients' expert labels. The oracles tell what limits the second
arm: where they do not help either, more slices of this kind are worth little; where they do, it is the labels' quality
(the pool's true Dice is printed beside) or how many cases were accepted.

    python benchmarks/student.py DATA --work WORK --support 3 --calibration 7 --pool 13 --test 7 \
        --draws 0 1 2 --out results/acdc
    python benchmarks/student.py DATA --work WORK --until bundle     # stop before training; train elsewhere:
    python benchmarks/student_train.py WORK/acdc.npz --out WORK/results --minutes 4
    python benchmarks/student.py                       # phantoms (procedural), ten minutes

DATA holds ``images/`` and ``labels/``. Everything is kept in WORK, so an interrupted benchmark goes on, and networks
that were trained elsewhere count. Prints Markdown tables, writes them into the data cards of the labelling runs' data
sets, and ends with one line of key figures; writes OUT.json and OUT.md. Exits 1 where the pseudo-labels did not help in
the mean over seeds, 2 on unusable input.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from student_arms import ACCEPTED, ALL_EXPERTS, ARMS, FEW_EXPERTS, MAIN, build_bundle
from student_bundle import Bundle
from student_sets import Plan, label_pool
from student_table import markdown, measure, pool_quality, students_markdown, summary_table
from student_train import train_all

from rfss_core.datasets import load
from rfss_core.errors import RfssError
from rfss_core.phantom import write_cohort
from rfss_core.settings import SupervisedSettings
from tasks.registry import DataRegistry
from tasks.student_notes import note_result
from tasks.students import registered_version
from tasks.tracking import registry_uri

RATES = {"unet": 2e-3, "swin-unetr": 5e-4, "segformer": 5e-4}
"""Learning rates: that of the settings for the convolutional network, a quarter of it for transformers."""
DEFAULTS = {
    **{part: getattr(Plan(), part) for part in ("support", "calibration", "pool", "test", "slices")},
    "image_size": 128,
    "steps": 1000,
    "arms": ARMS,
}
PHANTOMS = {
    "support": 2,
    "calibration": 6,
    "pool": 8,
    "test": 6,
    "slices": 12,
    "image_size": 64,
    "steps": 600,
    "arms": MAIN,
}
"""12 slices: phantoms are so alike that 50 leave a network little to learn."""
HALF = {"swin-unetr": "bfloat16", "segformer": "float16"}
"""Mixed precision on CUDA."""


def main() -> int:
    """Label, train, measure, print, write; see the module's text."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="rfss-student-") as temporary:
        try:
            return _run(given, Path(temporary))
        except RfssError as error:
            print(f"student: {error}", file=sys.stderr)
            return 2


def _run(given: argparse.Namespace, temporary: Path) -> int:
    data, name = given.folder, "phantoms"
    if data is None:
        data = temporary / "phantoms"
        write_cohort(data, patients=given.support + given.calibration + given.pool + given.test, seed=0)
    else:
        name = data.resolve().name
    work = (given.work or temporary) / name
    plan = Plan(given.support, given.calibration, given.pool, given.test, given.slices, given.preset)
    labelled = {draw: label_pool(data, plan, draw, work / str(draw)) for draw in given.draws}
    bundle = work.parent / f"{name}.npz"
    if not bundle.exists():
        build_bundle(name, data, labelled, work, bundle, _training(given), given.image_size, given.seeds, given.arms)
    if given.until == "bundle":
        print(f"{bundle}: {len(Bundle(bundle).jobs)} networks, {bundle.stat().st_size / 2**20:.1f} MiB")
        return 0
    results = given.results or work.parent / "results"
    if train_all([bundle], results, given.minutes, given.processes, given.device):
        return 1
    rows = measure(Bundle(bundle), results / name, data)
    if not rows:
        raise RfssError(f"no network of {bundle} was trained in time; give more --minutes")
    table, pools = summary_table(rows), pool_quality(labelled, work, data)
    for draw in given.draws:
        note_in_card(work / str(draw) / "workspace", [row for row in rows if row["draw"] == draw], name)
    text = markdown(name, table, pools)
    print(text)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"plan": asdict(plan), "labelling": labelled, "pool": pools, "table": table, "rows": rows}
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return _verdict(name, table)


def note_in_card(workspace: Path, rows: Sequence[dict[str, Any]], data: str) -> None:
    """Write the students of one draw into the card of the data set that its labelling run registered."""
    if not rows:
        return
    registry, table = DataRegistry(registry_uri(str(workspace))), summary_table(rows)
    version = registered_version(registry, load(str(workspace), verify="none", log_input=False))
    if version is None:
        raise RfssError(f"the data set of '{workspace}' is registered no more; take an empty --work folder")
    gains = [line["gain"] for line in table if line["architecture"] == "unet" and line["arm"] == ACCEPTED]
    text = f"`benchmarks/student.py` on {data}; nobody saw the test patients, the labelling run included."
    note_result(
        registry,
        version,
        f"{text}\n\n{students_markdown(table)}",
        title="Benchmark",
        gain=gains[0] if gains else None,
    )


def _verdict(name: str, table: Sequence[dict[str, Any]]) -> int:
    found = {line["arm"]: line["dice"] for line in table if line["architecture"] == "unet" and line["arm"] in MAIN}
    print(f"{name}, U-Net: " + "; ".join(f"{arm} {dice:.3f}" for arm, dice in found.items()))
    helped = found.get(ACCEPTED, 0.0) > found.get(FEW_EXPERTS, 1.0)
    if not helped:
        print(f"missed: '{ACCEPTED}' is not above '{FEW_EXPERTS}'", file=sys.stderr)
    if ALL_EXPERTS not in found:
        print(f"missing: '{ALL_EXPERTS}' was not trained in time", file=sys.stderr)
    return 0 if helped else 1


def _defaults(given: argparse.Namespace) -> argparse.Namespace:
    for name, value in (PHANTOMS if given.folder is None else DEFAULTS).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def _training(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    return {
        architecture: SupervisedSettings(
            image_size=given.image_size,
            steps=given.steps,
            patience=given.patience,
            learning_rate=RATES[architecture],
            autocast=architecture in HALF,
            half=HALF.get(architecture, "bfloat16"),  # type: ignore[arg-type]
        ).model_dump(mode="json")
        for architecture in given.architectures
    }


def _arguments() -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="holds images/ and labels/ (default: phantoms)")
    parser.add_argument("--work", type=Path, default=None, help="keep labelling runs, bundle and networks here")
    parser.add_argument("--results", type=Path, default=None, help="networks' label maps (default: WORK/results)")
    parser.add_argument("--until", choices=("bundle", "end"), default="end")
    parser.add_argument("--draws", type=int, nargs="+", default=[0], help="seeds of patients and labelling runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings of each draw")
    for part in ("support", "calibration", "pool", "test", "slices"):
        parser.add_argument(f"--{part}", type=int, default=None, help=f"({DEFAULTS[part]}; phantoms: {PHANTOMS[part]})")
    parser.add_argument("--preset", default=plan.preset)
    parser.add_argument("--architectures", nargs="+", default=["unet"], choices=list(RATES))
    parser.add_argument("--image-size", type=int, default=None, help="pixels (128; phantoms: 64)")
    parser.add_argument("--steps", type=int, default=None, help="of each training (1000; phantoms: 600)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help="(all; phantoms: first 3)")
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="write OUT.json and OUT.md")
    return _defaults(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

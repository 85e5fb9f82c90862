"""Command line: ``python -m rfss_core.pretraining pack | train | average | evaluate | export | holdout``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from rfss_core.errors import RfssError
from rfss_core.pretraining.checkpoint import average_checkpoints, load_checkpoint, save_checkpoint
from rfss_core.pretraining.embedder import AgreementObjective
from rfss_core.pretraining.evaluation import Protocol, Strategy, evaluate, held_out_slices
from rfss_core.pretraining.export import build, export
from rfss_core.pretraining.folder import write_part
from rfss_core.pretraining.pack import read_packs, write_packs
from rfss_core.pretraining.segmenter import InContextObjective
from rfss_core.pretraining.settings import TrainingSettings
from rfss_core.pretraining.source import SOURCES, parts_of
from rfss_core.pretraining.task import GroupDataset, LabelledGroupDataset, Mixture
from rfss_core.pretraining.trainer import train
from rfss_core.settings import readable

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Build the embedded models of RFSS.")
console = Console()

Data = Annotated[Path, typer.Option(envvar="RFSS_DATA", help="Folder with hippocampus/, pack/ and the other sets.")]
Packs = Annotated[Path, typer.Option(help="Folder of packed sets.")]
Threads = Annotated[int, typer.Option(help="Threads of PyTorch. One a training on a busy machine.")]
Kind = Literal["sam2", "dinov2"]

RUNS = Path("runs/pretraining")
RUN_HELP = "Folder of the training: checkpoint.pt and log.jsonl."
DEFAULT_PACKS = RUNS / "packs"
EMBEDDING_MIXTURE = Mixture(expert=0.55, derived=0, region=0.15, synthetic_regions=0.15, synthetic_shapes=0.15)
EVALUATED = ("acdc", "hippocampus", "prostate-mr", "prostate-us", "fetal-head-pack", "nuclei")


@app.command()
def pack(data: Data = Path("../shared/data"), out: Packs = DEFAULT_PACKS) -> None:
    """Pack training and validation patients; test patients stay out."""
    for part, sets in write_packs(data, out).items():
        console.print(f"{part}: " + ", ".join(f"{name} {count}" for name, count in sets.items()))


@app.command("train")
def train_model(
    kind: Annotated[Kind, typer.Argument(help="Which model.")],
    packs: Packs = DEFAULT_PACKS,
    run: Annotated[Path | None, typer.Option(help=f"{RUN_HELP} Default: runs/pretraining/KIND.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes; start again to go on.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop at this step.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels a side. Default: 128 for SAM 2, 112 for DINOv2.")] = None,
    groups: Annotated[int, typer.Option(help="Groups (tasks) in a step.")] = 4,
    members: Annotated[int, typer.Option(help="Images in a group.")] = 8,
    horizon: Annotated[int, typer.Option(help="Step at which the cosine ends; 0: when --minutes are over.")] = 20000,
    start: Annotated[
        Path | None, typer.Option(help="Folder in the hub's format to start from. Default: structure alone.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-4,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 100,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.998,
    seed: Annotated[int, typer.Option(help="Seed of weights, tasks and draws.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that draw tasks.")] = 0,
    autocast: Annotated[bool | None, typer.Option(help="bfloat16 arithmetic. Default: on CUDA only.")] = None,
    threads: Threads = 1,
) -> None:
    """Train the segmenter in context, or the embedder on label agreement; goes on from the run's checkpoint."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = TrainingSettings(
        device=device, autocast=device == "cuda" if autocast is None else autocast,
        size=size or (128 if kind == "sam2" else 112), groups=groups, members=members, horizon=horizon or None,
        start=None if start is None else str(start),
        learning_rate=rate, warmup=warmup, ema=ema, seed=seed, workers=workers,
    )  # fmt: skip
    folder = run or RUNS / kind
    training = read_packs(packs, "train")
    objective: InContextObjective | AgreementObjective
    data: GroupDataset
    if kind == "sam2":
        data = GroupDataset(training, settings.size, members, seed)
        objective = InContextObjective(settings)
    else:
        data = LabelledGroupDataset(training, settings.size, members, seed + 1, EMBEDDING_MIXTURE)
        objective = AgreementObjective(settings, torch.cat([data[2**30 + i]["images"] for i in range(16)]))
    done = train(objective, data, settings, folder, steps=steps, minutes=minutes)
    console.print(f"step {done.step}, {done.seconds / 60:.1f} minutes in all; checkpoint in {folder}")


@app.command()
def average(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trainings that went on from one checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder for the averaged checkpoint, which can be trained further.")],
) -> None:
    """Average branches of one training that ran with different seeds."""
    mean = average_checkpoints(runs)
    save_checkpoint(out, mean)
    console.print(f"mean of {len(runs)} branches at step {mean.step}, checkpoint in {out}")


@app.command("evaluate")
def evaluate_models(
    data: Data = Path("../shared/data"),
    sam2: Annotated[Path | None, typer.Option(help="Training folder of SAM 2.")] = RUNS / "sam2",
    dinov2: Annotated[Path | None, typer.Option(help="Training folder of DINOv2.")] = RUNS / "dinov2",
    sets: Annotated[str, typer.Option(help="Comma-separated sets.")] = ",".join(EVALUATED),
    part: Annotated[str, typer.Option(help="test, or validation to choose checkpoints (never ACDC).")] = "test",
    supports: Annotated[str | None, typer.Option(help="Part whose patients give the supports. Default: PART.")] = None,
    strategy: Annotated[str, typer.Option(help="Comma-separated: dino, random, pixels.")] = "dino,random",
    support: Annotated[int, typer.Option(help="Support slices.")] = 50,
    queries: Annotated[int, typer.Option(help="Query patients a seed.")] = 6,
    k: Annotated[int, typer.Option(help="Supports of a query.")] = 8,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    size: Annotated[int | None, typer.Option(help="Image size of SAM 2. Default: as trained.")] = None,
    segmentation: Annotated[bool, typer.Option(help="Segment, too; else retrieval and label fusion only.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    threads: Threads = 1,
) -> None:
    """Measure on patients that never trained, and on ACDC, which nobody trained on."""
    torch.set_num_threads(threads)
    sam2_state = load_checkpoint(sam2, "sam2") if sam2 and segmentation else None
    dinov2_state = load_checkpoint(dinov2, "dinov2") if dinov2 else None
    network = build(sam2_state, size) if sam2_state else None
    embedder = build(dinov2_state) if dinov2_state else None
    table = Table("set", "strategy", "retrieval", "fusion", "dice", "per class", "false, missed", "slices/s")
    results: dict[str, dict[str, Any]] = {}
    for name in sets.split(","):
        slices = held_out_slices(data, name, part)
        pool = held_out_slices(data, name, supports) if supports and supports != part else None
        for way in strategy.split(","):
            chosen: Strategy = way  # type: ignore[assignment]
            protocol = Protocol(support_slices=support, query_patients=queries, k=k, strategy=chosen)
            found = evaluate(embedder, network, slices, protocol, tuple(range(seeds)), pool)
            results.setdefault(name, {})[way] = found
            dice = found.get("dice", {})
            per_class = " ".join(f"{key}:{value:.2f}" for key, value in dice.items() if key != "mean")
            table.add_row(
                name, way, f"{found['retrieval']:.3f}", f"{found['fusion']['mean']:.3f}",
                f"{dice['mean']:.3f}" if dice else "-", per_class,
                " ".join(f"{value:.2f}" for value in found.get("presence", {}).values()),
                str(found.get("slices_per_second", "-")),
            )  # fmt: skip
        # After each set: hours of measuring must not hang on the last one.
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(table)


@app.command("export")
def export_model(
    run: Annotated[Path, typer.Option(help=RUN_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for config.json and model.safetensors.")],
    size: Annotated[int | None, typer.Option(help="Image size of SAM 2. Default: as trained.")] = None,
) -> None:
    """Write a checkpoint's averaged weights in the hub's folder format."""
    file = export(run, out, size)
    console.print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


@app.command()
def holdout(data: Data = Path("../shared/data")) -> None:
    """Print the patients of every set that never train."""
    for name in sorted({source.split_set for source in SOURCES}):
        parts = parts_of(data, name)
        for part in ("test", "validation"):
            patients = sorted(patient for patient, found in parts.items() if found == part)
            console.print(f"{name} {part} ({len(patients)} of {len(parts)}): {', '.join(patients)}", soft_wrap=True)


@app.command()
def folder(
    name: Annotated[str, typer.Argument(help="Name of a set, for example hippocampus.")],
    out: Annotated[Path, typer.Option(help="New folder for images/ and labels/.")],
    data: Data = Path("../shared/data"),
    part: Annotated[str, typer.Option(help="test, validation or train; all of ACDC.")] = "test",
) -> None:
    """Copy one part of a set into a folder that `rfss evaluate` reads."""
    console.print(f"{write_part(data, name, out, part)} cases in {out}")


def main() -> None:
    """Run the command line; errors of RFSS end it with exit code 2 and one line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        app()
    except (RfssError, ValidationError) as error:
        message = readable(error) if isinstance(error, ValidationError) else str(error)
        Console(stderr=True).print(f"error: {message}", style="red", highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()

"""Command line: ``python -m rfss_core.pretraining pack | train-sam2 | train-dinov2 | evaluate | export | holdout``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from rfss_core.errors import RfssError
from rfss_core.pretraining.checkpoint import load_checkpoint
from rfss_core.pretraining.embedder import AgreementObjective
from rfss_core.pretraining.evaluation import Protocol, Strategy, evaluate, held_out_slices
from rfss_core.pretraining.export import build, export
from rfss_core.pretraining.pack import read_packs, write_packs
from rfss_core.pretraining.segmenter import InContextObjective
from rfss_core.pretraining.settings import TrainingSettings
from rfss_core.pretraining.source import SOURCES, parts_of
from rfss_core.pretraining.task import GroupDataset, LabelledGroupDataset, Mixture
from rfss_core.pretraining.trainer import train

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Build the embedded models of RFSS.")
console = Console()

Data = Annotated[Path, typer.Option(envvar="RFSS_DATA", help="Folder with hippocampus/, pack/ and the other sets.")]
Packs = Annotated[Path, typer.Option(help="Folder of packed sets.")]
Run = Annotated[Path, typer.Option(help="Folder of the training: checkpoint.pt and log.jsonl.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so many minutes; start again to go on.")]
Steps = Annotated[int | None, typer.Option(help="Stop at this step.")]
Size = Annotated[int, typer.Option(help="Pixels a side.")]
Groups = Annotated[int, typer.Option(help="Groups (tasks) in a step.")]
Members = Annotated[int, typer.Option(help="Images in a group.")]
Horizon = Annotated[int, typer.Option(help="Step at which the cosine ends.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option(help="Steps of linear warm-up.")]
Ema = Annotated[float, typer.Option(help="Decay of the averaged weights.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, tasks and draws.")]
Workers = Annotated[int, typer.Option(help="Processes that draw tasks.")]
Autocast = Annotated[bool | None, typer.Option(help="bfloat16 arithmetic. Default: on CUDA only.")]
Threads = Annotated[int, typer.Option(help="Threads of PyTorch. One a training on a busy machine.")]

DEFAULT_PACKS = Path("runs/pretraining/packs")
DEFAULT_SAM2 = Path("runs/pretraining/sam2")
DEFAULT_DINOV2 = Path("runs/pretraining/dinov2")
EMBEDDING_MIXTURE = Mixture(expert=0.55, derived=0, region=0.15, synthetic_regions=0.15, synthetic_shapes=0.15)
EVALUATED = ("acdc", "hippocampus", "prostate-mr", "prostate-us", "fetal-head-pack", "spine-mr", "nuclei")


def _settings(autocast: bool | None, **values: Any) -> TrainingSettings:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainingSettings(device=device, autocast=device == "cuda" if autocast is None else autocast, **values)


@app.command()
def pack(data: Data = Path("../shared/data"), out: Packs = DEFAULT_PACKS) -> None:
    """Pack training and validation patients; test patients stay out."""
    for part, sets in write_packs(data, out).items():
        console.print(f"{part}: " + ", ".join(f"{name} {count}" for name, count in sets.items()))


@app.command()
def train_sam2(
    packs: Packs = DEFAULT_PACKS,
    run: Run = DEFAULT_SAM2,
    minutes: Minutes = None,
    steps: Steps = None,
    size: Size = 128,
    groups: Groups = 2,
    members: Members = 8,
    horizon: Horizon = 20000,
    rate: Rate = 4e-4,
    warmup: Warmup = 200,
    ema: Ema = 0.998,
    seed: Seed = 0,
    workers: Workers = 0,
    autocast: Autocast = None,
    threads: Threads = 1,
) -> None:
    """Train the segmenter in context, going on from the run's checkpoint."""
    torch.set_num_threads(threads)
    settings = _settings(
        autocast,
        size=size, groups=groups, members=members, horizon=horizon, learning_rate=rate, warmup=warmup, ema=ema,
        seed=seed, workers=workers,
    )  # fmt: skip
    data = GroupDataset(read_packs(packs, "train"), size, members, seed)
    done = train(InContextObjective(settings), data, settings, run, steps=steps, minutes=minutes)
    console.print(f"step {done.step}, {done.seconds / 60:.1f} minutes in all; checkpoint in {run}")


@app.command()
def train_dinov2(
    packs: Packs = DEFAULT_PACKS,
    run: Run = DEFAULT_DINOV2,
    minutes: Minutes = None,
    steps: Steps = None,
    size: Size = 112,
    groups: Groups = 4,
    members: Members = 12,
    horizon: Horizon = 20000,
    rate: Rate = 2e-4,
    warmup: Warmup = 100,
    ema: Ema = 0.998,
    seed: Seed = 0,
    workers: Workers = 0,
    autocast: Autocast = None,
    threads: Threads = 1,
) -> None:
    """Train the embedder on label agreement, going on from the run's checkpoint."""
    torch.set_num_threads(threads)
    settings = _settings(
        autocast,
        size=size, groups=groups, members=members, horizon=horizon, learning_rate=rate, warmup=warmup, ema=ema,
        seed=seed, workers=workers,
    )  # fmt: skip
    data = LabelledGroupDataset(read_packs(packs, "train"), size, members, seed + 1, EMBEDDING_MIXTURE)
    sample = torch.cat([data[2**30 + i]["images"] for i in range(16)])
    done = train(AgreementObjective(settings, sample), data, settings, run, steps=steps, minutes=minutes)
    console.print(f"step {done.step}, {done.seconds / 60:.1f} minutes in all; checkpoint in {run}")


@app.command("evaluate")
def evaluate_models(
    data: Data = Path("../shared/data"),
    sam2: Annotated[Path | None, typer.Option(help="Training folder of SAM 2.")] = DEFAULT_SAM2,
    dinov2: Annotated[Path | None, typer.Option(help="Training folder of DINOv2.")] = DEFAULT_DINOV2,
    sets: Annotated[str, typer.Option(help="Comma-separated sets.")] = ",".join(EVALUATED),
    part: Annotated[str, typer.Option(help="test, or validation to choose checkpoints (never ACDC).")] = "test",
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
    table = Table("set", "strategy", "retrieval", "fusion", "dice", "per class", "slices/s")
    results: dict[str, dict[str, Any]] = {}
    for name in sets.split(","):
        slices = held_out_slices(data, name, part)
        for way in strategy.split(","):
            chosen: Strategy = way  # type: ignore[assignment]
            protocol = Protocol(support_slices=support, query_patients=queries, k=k, strategy=chosen)
            found = evaluate(embedder, network, slices, protocol, tuple(range(seeds)))
            results.setdefault(name, {})[way] = found
            dice = found.get("dice", {})
            per_class = " ".join(f"{key}:{value:.2f}" for key, value in dice.items() if key != "mean")
            table.add_row(
                name, way, f"{found['retrieval']:.3f}", f"{found['fusion']['mean']:.3f}",
                f"{dice['mean']:.3f}" if dice else "-", per_class, str(found.get("slices_per_second", "-")),
            )  # fmt: skip
    console.print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


@app.command("export")
def export_model(
    run: Run,
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


def main() -> None:
    """Run the command line; errors of RFSS end it with exit code 2 and one line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        app()
    except RfssError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()

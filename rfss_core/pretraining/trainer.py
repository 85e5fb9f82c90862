"""The training loop that both models share: resumable, seeded, bounded in time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset, Sampler

from rfss_core.errors import ModelError, SettingsError
from rfss_core.pretraining.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rfss_core.pretraining.settings import TrainingSettings

Batch = dict[str, Tensor]
FLOOR = 0.02
"""Where the cosine ends, as a share of the peak."""
CPU_ATTENTION = [SDPBackend.MATH]
"""Hiera's windows hold few tokens: on a CPU the backward pass of fused attention takes a third of a step, plain
products a fifth."""


class Objective(Protocol):
    """What is trained, and how well it does on a batch."""

    kind: str
    model: nn.Module

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch on the model's device, and figures to log. ``generator`` is the step's own."""


class _Indices(Sampler[int]):
    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        index = self.start
        while True:
            yield index
            index += 1


def learning_rate(step: int, settings: TrainingSettings, elapsed: float = 0.0) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to ``FLOOR`` at the horizon.

    Args:
        step: steps so far.
        settings: of the training.
        elapsed: share of the sitting's time that is over; it drives the cosine where there is no horizon.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.horizon is not None:
        elapsed = (step - settings.warmup) / max(1, settings.horizon - settings.warmup)
    return settings.learning_rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed))))


def train(
    objective: Objective,
    data: Dataset[Batch],
    settings: TrainingSettings,
    folder: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    checkpoint_minutes: float = 3.0,
) -> Checkpoint:
    """Train until ``steps``, ``minutes`` or the horizon, whichever comes first, going on from the folder's checkpoint.

    Args:
        objective: model and loss.
        data: groups by index; index ``i`` is the same group in every sitting.
        settings: of the training.
        folder: where ``checkpoint.pt`` and ``log.jsonl`` live.
        steps: stop after this many steps in all sittings together.
        minutes: stop after this much time in this sitting.
        checkpoint_minutes: how often to write the checkpoint.

    Returns:
        The last checkpoint, which is on disk too.

    Raises:
        SettingsError: neither a horizon nor an end in time.
        ModelError: the weights to start from are of another architecture.
    """
    if settings.horizon is None and minutes is None:
        raise SettingsError("a training without a horizon needs an end in time: give --minutes, or --horizon STEPS")
    device = torch.device(settings.device)
    if settings.start is not None:
        start_from(objective.model, Path(settings.start))
    model = objective.model.to(device).train()
    optimizer = _optimizer(model, settings)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    checkpoint = load_checkpoint(folder, objective.kind)
    step, groups_seen, spent = 0, 0, 0.0
    if checkpoint is not None:
        model.load_state_dict(checkpoint.weights)
        optimizer.load_state_dict(checkpoint.optimizer)
        average = {name: value.to(device) for name, value in checkpoint.average.items()}
        step, groups_seen, spent = checkpoint.step, checkpoint.groups_seen, checkpoint.seconds
    last = min([value for value in (settings.horizon, steps) if value is not None], default=None)
    batches = iter(
        DataLoader(
            data,
            batch_size=settings.groups,
            sampler=_Indices(groups_seen),
            num_workers=settings.workers,
            pin_memory=settings.device == "cuda",
            persistent_workers=False,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    started = saved = time.monotonic()
    means: dict[str, float] = {}

    def snapshot() -> Checkpoint:
        return Checkpoint(
            kind=objective.kind,
            step=step,
            groups_seen=groups_seen,
            seconds=spent + time.monotonic() - started,
            weights={name: value.detach().cpu() for name, value in model.state_dict().items()},
            average={name: value.detach().cpu() for name, value in average.items()},
            optimizer=optimizer.state_dict(),
            settings=settings.model_dump(),
        )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(objective.kind, total=last, completed=step)
        while (last is None or step < last) and (minutes is None or time.monotonic() - started < 60 * minutes):
            batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
            rate = learning_rate(step, settings, (time.monotonic() - started) / (60 * minutes) if minutes else 0.0)
            for group in optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            optimizer.zero_grad(set_to_none=True)
            with sdpa_kernel(CPU_ATTENTION) if device.type == "cpu" else nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
                    loss, figures = objective.loss(batch, generator)
                loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            if torch.isfinite(norm):
                optimizer.step()
            step += 1
            groups_seen += settings.groups
            _update(average, model, min(settings.ema, step / (step + 10)))
            for name, value in {**figures, "gradient": norm}.items():
                means[name] = means.get(name, 0.0) + float(value) / 50
            if step % 50 == 0:
                _log(folder, step, rate, spent + time.monotonic() - started, means)
                progress.update(bar, description=f"{objective.kind} loss {means['loss']:.3f}")
                means = {}
            progress.update(bar, completed=step)
            if time.monotonic() - saved > 60 * checkpoint_minutes:
                save_checkpoint(folder, snapshot())
                saved = time.monotonic()
    final = snapshot()
    save_checkpoint(folder, final)
    return final


def start_from(model: nn.Module, folder: Path) -> None:
    """Give a model the weights of a folder in the hub's format.

    Raises:
        ModelError: there are none, or they are of another architecture.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ModelError(f"no {file} to start from; name a folder that `export` wrote")
    found = {name: value.float() for name, value in load_file(file).items()}
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ModelError(f"{file} does not fit this model: {error}; start from weights of the same config") from error


def _optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )


@torch.no_grad()
def _update(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value.detach(), 1 - decay)
        else:
            average[name].copy_(value)


def _log(folder: Path, step: int, rate: float, seconds: float, means: dict[str, float]) -> None:
    line = {"step": step, "rate": round(rate, 7), "seconds": round(seconds, 1)}
    line |= {name: round(value, 4) for name, value in means.items()}
    with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")

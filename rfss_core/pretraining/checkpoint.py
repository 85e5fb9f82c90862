"""Checkpoints of a training: written atomically, read without unpickling code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfss_core.errors import ModelError

FILE = "checkpoint.pt"


@dataclass
class Checkpoint:
    """State of a training after ``step`` steps."""

    kind: str
    """What is trained: ``sam2`` or ``dinov2``."""
    step: int
    groups_seen: int
    """Groups drawn so far: the index of the next one."""
    seconds: float
    """Time spent in training steps, over all sittings."""
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Exponential moving average of the weights."""
    optimizer: dict[str, Any]
    settings: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder/checkpoint.pt``; whoever kills this leaves the previous one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.{os.getpid()}.tmp"
    with temporary.open("wb") as stream:
        torch.save(vars(checkpoint), stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / FILE)


def load_checkpoint(folder: Path, kind: str | None = None) -> Checkpoint | None:
    """Read ``folder/checkpoint.pt``, or return None where there is none.

    Raises:
        ModelError: the checkpoint is of another kind of model.
    """
    file = folder / FILE
    if not file.exists():
        return None
    checkpoint = Checkpoint(**torch.load(file, map_location="cpu", weights_only=True))
    if kind is not None and checkpoint.kind != kind:
        raise ModelError(f"{file} holds a {checkpoint.kind} training, not {kind}; choose another --run folder")
    return checkpoint


def average_checkpoints(folders: Sequence[Path]) -> Checkpoint:
    """Average trainings that went on from one checkpoint with different seeds (Wortsman et al., Model soups, 2022).

    Two cores train two branches without waiting for each other; their mean is better than either and can be trained
    further.

    Args:
        folders: training folders, two or more.

    Returns:
        The mean of weights and averaged weights; time added up; the rest from the first folder.

    Raises:
        ModelError: fewer than two folders, none or different checkpoints in them.
    """
    found = [load_checkpoint(folder) for folder in folders]
    states = [state for state in found if state is not None]
    if len(states) < 2 or len(states) < len(found):
        raise ModelError(f"averaging needs a checkpoint in each of two folders or more, got {len(states)} checkpoints")
    first = states[0]
    shapes = [{name: value.shape for name, value in state.weights.items()} for state in states]
    if any(state.kind != first.kind for state in states) or any(shape != shapes[0] for shape in shapes):
        raise ModelError("these trainings are of different models; average branches of one training")
    return replace(
        first,
        step=max(state.step for state in states),
        groups_seen=max(state.groups_seen for state in states),
        seconds=sum(state.seconds for state in states),
        weights=_mean([state.weights for state in states]),
        average=_mean([state.average for state in states]),
    )


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    mean = {}
    for name, value in states[0].items():
        stacked = torch.stack([state[name] for state in states])
        mean[name] = stacked.mean(0) if value.is_floating_point() else value
    return mean

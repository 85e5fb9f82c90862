"""Checkpoints of a training: written atomically, read without unpickling code."""

from __future__ import annotations

import os
from dataclasses import dataclass
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

"""From a checkpoint to a folder in the hub's format."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rfss_core.errors import ModelError
from rfss_core.pretraining.checkpoint import Checkpoint, load_checkpoint
from rfss_core.pretraining.embedder import build_dinov2
from rfss_core.pretraining.segmenter import build_sam2
from rfss_core.pretraining.source import SOURCES

LICENCE = "CC BY-SA 4.0"
"""The strictest licence among the training sets (hippocampus) decides."""
LARGEST_FILE = 16 * 2**20


def build(checkpoint: Checkpoint, size: int | None = None) -> Any:
    """Build the model of a checkpoint with its averaged weights, in evaluation mode.

    Args:
        checkpoint: of either kind.
        size: pixels a side for SAM 2; None takes the size it was last trained at.
    """
    model = build_sam2(size or checkpoint.settings["size"]) if checkpoint.kind == "sam2" else build_dinov2()
    model.load_state_dict(checkpoint.average)
    if checkpoint.kind == "sam2":
        # Training shows conditioning memories only. What the other temporal positions would be is unknown; a slice of
        # the query's own volume then counts as one more support.
        positions = model.memory_temporal_positional_encoding.data
        positions[:-1] = positions[-1:]
    return model.eval()


def export(run: Path, folder: Path, size: int | None = None) -> Path:
    """Write ``config.json`` and ``model.safetensors`` (float16; loaders raise it to the configuration's float32).

    Args:
        run: training folder with a checkpoint.
        folder: where to write.
        size: image size of the exported SAM 2; None takes the size it was last trained at.

    Returns:
        The weights file.

    Raises:
        ModelError: no checkpoint, weights that float16 cannot hold, or a file above 16 MB.
    """
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise ModelError(f"no checkpoint in {run}; train first")
    model = build(checkpoint, size)
    halves = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    lost = [name for name, value in halves.items() if not torch.isfinite(value).all()]
    if lost:
        raise ModelError(f"{lost[0]} does not fit into float16; train with a smaller learning rate")
    model.config.dtype = "float32"
    model.config.rfss = {
        "trained": True,
        "steps": checkpoint.step,
        "training_size": checkpoint.settings["size"],
        "training_minutes": round(checkpoint.seconds / 60, 1),
        "device": checkpoint.settings["device"],
        "started_from": _before(checkpoint.settings.get("start")),
        "data": [*sorted({source.split_set for source in SOURCES}), "synthetic"],
        "date": date.today().isoformat(),  # noqa: DTZ011
        "licence": LICENCE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "model.safetensors.tmp"
    save_file(halves, temporary, metadata={"format": "pt"})
    if temporary.stat().st_size > LARGEST_FILE:
        raise ModelError(f"the weights take {temporary.stat().st_size} bytes, above {LARGEST_FILE}; shrink config.json")
    # The configuration first: weights must never lie beside an older one.
    model.config.save_pretrained(folder)
    target = folder / "model.safetensors"
    # safetensors writes for the owner alone; an installed package is read by everyone.
    temporary.chmod(0o644)
    temporary.replace(target)
    return target


def _before(start: str | None) -> dict[str, Any] | None:
    """Return what the weights that a training started from say of themselves."""
    if start is None:
        return None
    said: dict[str, Any] = json.loads((Path(start) / "config.json").read_text(encoding="utf-8")).get("rfss", {})
    return {name: said[name] for name in ("steps", "training_minutes", "date", "started_from") if name in said}

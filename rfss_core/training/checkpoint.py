"""Checkpoints of a training: all that it takes to go on as if nothing had happened, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rfss_core.errors import ModelError
from rfss_core.training.model import read_metadata

_KEY = "rfss-training"


@dataclass(frozen=True)
class Round:
    """Where a training is after some steps."""

    step: int
    steps: int
    """Steps at most."""
    loss: float
    """Mean over the round."""
    validation_dice: float | None
    """Mean over validation patients and classes; None without validation patients."""


@dataclass
class Progress:
    """What changes during a training besides the network and the optimizer."""

    rounds: list[Round] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    """Weights of the best round; None without validation patients."""
    stale: int = 0
    """Rounds since then."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.rounds[-1].step if self.rounds else 0


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints are kept; ``write`` must be atomic."""

    read: Callable[[], bytes | None]
    """Return the last one; None before the first."""
    write: Callable[[bytes], None]


@dataclass(frozen=True, eq=False)
class State:
    """The parts of a training that a checkpoint holds."""

    key: str
    """Digest of all that the training depends on."""
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress

    def to_bytes(self) -> bytes:
        """Return a safetensors file: weights, AdamW's moments, the best weights; the rest as its metadata."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        moments = self.optimizer.state_dict()["state"]
        tensors |= {f"moment.{place}.{name}": value for place, own in moments.items() for name, value in own.items()}
        tensors |= {f"best.{name}": value for name, value in (self.progress.best or {}).items()}
        said = {
            "key": self.key,
            "rounds": [asdict(one) for one in self.progress.rounds],
            "stale": self.progress.stale,
            "scaler": self.scaler.state_dict(),
        }
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        return bytes(save_tensors(plain, metadata={_KEY: json.dumps(said)}))

    def restore(self, data: bytes) -> None:
        """Take up what :meth:`to_bytes` wrote.

        Raises:
            ModelError: it is of another training, or damaged.
        """
        try:
            said, tensors = json.loads(read_metadata(data)[_KEY]), load_tensors(data)
            if said["key"] != self.key:
                raise ModelError("the checkpoint is of another training (other data, settings or code); remove it")
            parts: dict[str, dict[str, Tensor]] = {"network": {}, "moment": {}, "best": {}}
            for name, value in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = value
            self.network.load_state_dict(parts["network"])
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in parts["moment"].items():
                place, _, rest = name.partition(".")
                moments.setdefault(int(place), {})[rest] = value
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
            if said["scaler"]:
                self.scaler.load_state_dict(said["scaler"])
            self.progress.rounds[:] = [Round(**one) for one in said["rounds"]]
            device = next(self.network.parameters()).device
            self.progress.best = {name: value.to(device) for name, value in parts["best"].items()} or None
            self.progress.stale = said["stale"]
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the checkpoint is damaged ({error}); remove it to train from the start") from error

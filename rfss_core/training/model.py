"""A trained network with all that it takes to use it, as bytes and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rfss_core.digest import digest_bytes
from rfss_core.errors import ModelError
from rfss_core.training.architecture import build_network
from rfss_core.training.canvas import Canvas

_KEY = "rfss"


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is, besides its weights."""

    architecture: str
    channels: int
    """Of the image: 1, or 3 where a training slice was coloured."""
    classes: tuple[int, ...]
    """Label values in ascending order: plane c + 1 of the output is class c, plane 0 the background."""
    width: int
    """Channels of the finest level."""
    canvas: Canvas
    """Its input grid."""

    def build(self, seed: int = 0) -> torch.nn.Module:
        """Build the network with random weights; see :func:`rfss_core.training.architecture.build_network`."""
        return build_network(self.architecture, self.channels, 1 + len(self.classes), self.width, seed)


@dataclass(frozen=True, eq=False)
class SupervisedModel:
    """A specification and a network in evaluation mode, float32, on the CPU."""

    spec: NetworkSpec
    network: torch.nn.Module

    def to_bytes(self) -> bytes:
        """Return a safetensors file whose metadata hold the specification; same weights, same bytes."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        return bytes(save_tensors(weights, metadata={_KEY: json.dumps(asdict(self.spec), sort_keys=True)}))

    @property
    def digest(self) -> str:
        """sha256 of weights and specification."""
        return digest_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> SupervisedModel:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ModelError: no safetensors, not a network of ours, or weights that do not fit their specification.
        """
        try:
            spec = _spec(json.loads(read_metadata(data)[_KEY]))
            network = spec.build()
            network.load_state_dict(load_tensors(data))
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(
                f"these {len(data)} bytes hold no network that RFSS trained ({error}); train it again"
            ) from error
        return cls(spec, network.eval().requires_grad_(requires_grad=False))


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file's bytes."""
    # The library reads metadata from files only; the header is JSON after its length in 8 bytes, little-endian.
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def _spec(fields: dict[str, Any]) -> NetworkSpec:
    canvas, classes = Canvas(**fields.pop("canvas")), tuple(int(value) for value in fields.pop("classes"))
    return NetworkSpec(canvas=canvas, classes=classes, **fields)

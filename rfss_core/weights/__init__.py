"""Model references: from a hub id, a folder or an embedded name to verified weights on disk.

The embedded models live beside this file, one folder each in the hub's format (``config.json`` and
``model.safetensors``).
"""

from rfss_core.weights.checkpoint import load_checkpoint
from rfss_core.weights.device import resolve_device
from rfss_core.weights.reference import ModelReference, resolve_model

__all__ = ["ModelReference", "load_checkpoint", "resolve_device", "resolve_model"]

"""Which device models run on."""

from __future__ import annotations

import torch

from rfss_core.errors import SettingsError


def resolve_device(name: str = "auto") -> torch.device:
    """Turn a setting into a device that this process can use.

    Args:
        name: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:<n>``.

    Returns:
        The device; CUDA devices carry their index.

    Raises:
        SettingsError: an unknown name, or a CUDA device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"'{name}' is not a device; use auto, cpu, cuda or cuda:<n>") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise SettingsError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:<n>")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= found:
        raise SettingsError(
            f"device '{name}' was asked for, but this process sees {found} CUDA devices; use cpu or auto"
        )
    return torch.device("cuda", index)

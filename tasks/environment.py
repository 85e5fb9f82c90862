"""Environment: the software that a data set was made with."""

from __future__ import annotations

import json
import platform
from importlib.metadata import distributions
from typing import Any

import torch

from rfss_core import __version__
from rfss_core.code import code_version


def installed_packages() -> dict[str, str]:
    """Return name -> version of every installed package, sorted by name."""
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def environment() -> dict[str, Any]:
    """Return what else matters: versions of RFSS, Python and torch, the system, the device. No host or user name."""
    cuda = torch.cuda.is_available()
    return {
        "rfss": __version__,
        "code": code_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if cuda
        else ["cpu"],
    }


def environment_files() -> dict[str, str]:
    """Return the files of the artifact ``environment``: name -> text."""
    frozen = "".join(f"{name}=={number}\n" for name, number in installed_packages().items())
    return {
        "environment/requirements.txt": frozen,
        "environment/environment.json": json.dumps(environment(), indent=1, sort_keys=True) + "\n",
    }

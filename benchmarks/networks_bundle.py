"""One file with the slices and jobs of a study's networks, so that another machine can train them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Job:
    """One network: what trains it, and what it labels."""

    inputs: str
    """Digest of slices and settings."""
    label: str
    seed: int
    architecture: str
    training: dict[str, Any]
    support: list[int]
    """Rows of the bundle that train."""
    test: list[int]
    """Rows of the bundle that are labelled, case by case, in z order."""


class Bundle:
    """Slices of all rows of a study, and its jobs.

    Args:
        path: a file that ``networks_elsewhere.py write`` made.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        about = json.loads(self.arrays.pop("about").tobytes())
        self.name: str = about["name"]
        self.study: dict[str, Any] = about["study"]
        self.classes = {int(value): str(name) for value, name in about["classes"].items()}
        self.ids: list[str] = about["ids"]
        self.patients: list[str] = about["patients"]
        self.jobs = [Job(**job) for job in about["jobs"]]

    def image(self, row: int) -> npt.NDArray[np.float32]:
        """Return slice ``row``, float32 [H, W] in [0, 1]."""
        found: npt.NDArray[np.float32] = self._plane("images", row).astype(np.float32) / 255.0
        return found

    def mask(self, row: int) -> npt.NDArray[np.uint8]:
        """Return its label map, uint8 [H, W]."""
        return self._plane("labels", row)

    def _plane(self, name: str, row: int) -> npt.NDArray[np.uint8]:
        height, width = (int(side) for side in self.arrays["shapes"][row])
        start = int(self.arrays["starts"][row])
        plane: npt.NDArray[np.uint8] = self.arrays[name][start : start + height * width].reshape(height, width)
        return plane


class Slices:
    """Some slices of a bundle, as training and segmenters read them."""

    def __init__(self, bundle: Bundle, rows: Sequence[int]) -> None:
        self._bundle, self._rows = bundle, list(rows)
        self.classes: Mapping[int, str] = bundle.classes
        self.ids = [bundle.ids[row] for row in rows]
        self.patients = [bundle.patients[row] for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int, /) -> npt.NDArray[np.float32]:
        """Return slice ``index``."""
        return self._bundle.image(self._rows[index])

    def mask(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Return its label map."""
        return self._bundle.mask(self._rows[index])

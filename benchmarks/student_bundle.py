"""The file that ``student.py`` trains from: slices, several label maps of each, and the networks to be trained on them.

Needs numpy alone, so that a machine with a GPU and little else can read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

EXPERT = "expert"


@dataclass(frozen=True)
class Part:
    """Slices of a training whose labels come from one place."""

    rows: list[int]
    labels: str
    """Name of the label maps."""
    weights: list[float]
    expert: bool = True
    validates: bool = False


@dataclass(frozen=True)
class Job:
    """One network: what trains it, and what it labels."""

    draw: int
    """Seed of the patients' parts and of the labelling run."""
    seed: int
    """Seed of the training."""
    arm: str
    architecture: str
    training: dict[str, Any]
    parts: list[Part]
    test: list[int]
    """Rows that are labelled, case by case, in z order."""

    @property
    def name(self) -> str:
        """What messages and results call it."""
        return f"{self.architecture}, {self.arm}, draw {self.draw}, seed {self.seed}"


class Bundle:
    """Slices, their label maps, and jobs.

    Args:
        path: a file of :func:`write_bundle`.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self._arrays = {name: stored[name] for name in stored.files}
        about = json.loads(self._arrays.pop("about").tobytes())
        self.name: str = about["name"]
        self.classes = {int(value): str(name) for value, name in about["classes"].items()}
        self.ignore: int = about["ignore"]
        self.ids: list[str] = about["ids"]
        self.patients: list[str] = about["patients"]
        self.jobs = [Job(**{**job, "parts": [Part(**part) for part in job["parts"]]}) for job in about["jobs"]]
        self._starts = {
            name: dict(zip(rows, np.cumsum([0, *(self._size(row) for row in rows)]), strict=False))
            for name, rows in about["rows"].items()
        }

    def image(self, row: int) -> npt.NDArray[np.float32]:
        """Return slice ``row``, float32 [H, W] in [0, 1]."""
        found: npt.NDArray[np.float32] = self._plane("images", row).astype(np.float32) / 255.0
        return found

    def labels(self, name: str, row: int) -> npt.NDArray[np.uint8]:
        """Return one of its label maps, uint8 [H, W]."""
        return self._plane(name, row)

    def shape(self, row: int) -> tuple[int, int]:
        """Return (height, width) of slice ``row``."""
        height, width = (int(side) for side in self._arrays["shapes"][row])
        return height, width

    def _size(self, row: int) -> int:
        height, width = self.shape(row)
        return height * width

    def _plane(self, name: str, row: int) -> npt.NDArray[np.uint8]:
        start = int(self._starts[name][row])
        plane: npt.NDArray[np.uint8] = self._arrays[name][start : start + self._size(row)].reshape(self.shape(row))
        return plane


class TrainingSlices:
    """The slices of a job, as :func:`rfss_core.training.train_supervised` reads them."""

    def __init__(self, bundle: Bundle, parts: Sequence[Part]) -> None:
        self._bundle = bundle
        self._items = [(row, part.labels) for part in parts for row in part.rows]
        self.classes: Mapping[int, str] = bundle.classes
        self.ids = [f"{bundle.ids[row]}:{labels}" for row, labels in self._items]
        self.patients = [bundle.patients[row] for row, _ in self._items]

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int, /) -> npt.NDArray[np.float32]:
        """Return slice ``index``."""
        return self._bundle.image(self._items[index][0])

    def mask(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Return its label map."""
        row, labels = self._items[index]
        return self._bundle.labels(labels, row)


def write_bundle(
    path: Path,
    name: str,
    classes: Mapping[int, str],
    slices: Sequence[tuple[str, str, npt.NDArray[np.uint8]]],
    labels: Mapping[str, Mapping[int, npt.NDArray[np.uint8]]],
    jobs: Sequence[Job],
) -> None:
    """Write a bundle.

    Args:
        path: the file.
        name: of the data.
        classes: label value to name.
        slices: id, patient and image, uint8 [H, W], of each row.
        labels: name of label maps -> row -> uint8 [H, W]; ``expert`` among them.
        jobs: networks to train.
    """
    about = {
        "name": name,
        "classes": dict(classes),
        "ignore": max(classes) + 1,
        "ids": [one[0] for one in slices],
        "patients": [one[1] for one in slices],
        "rows": {"images": list(range(len(slices))), **{kind: list(maps) for kind, maps in labels.items()}},
        "jobs": [asdict(job) for job in jobs],
    }
    flat = {kind: np.concatenate([plane.ravel() for plane in maps.values()]) for kind, maps in labels.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        images=np.concatenate([image.ravel() for _, _, image in slices]),
        shapes=np.array([image.shape for _, _, image in slices]),
        **flat,  # type: ignore[arg-type]
    )

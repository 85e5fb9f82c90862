"""A data set as torch sees it: slices or volumes, read lazily, in any number of DataLoader workers."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from rfss_core.datasets.ignore import check_level
from rfss_core.datasets.pseudo_label_case import PseudoLabelCase
from rfss_core.datasets.pseudo_label_set import PseudoLabelSet
from rfss_core.errors import InputError
from rfss_core.quality.decision import Decision


class PseudoLabelTorchDataset(Dataset[Any]):
    """Map-style dataset of slices or volumes.

    An item is a dictionary: ``image`` float32 [C, H, W] or [C, Z, H, W] in [0, 1]; ``label`` int64 [H, W] or [Z, H, W]
    with the class values of the data set and :attr:`ignore_index`; ``weight`` float32, the case's confidence; ``case``,
    ``patient``; ``slice``, the slice's number (slices only); ``spacing`` float32 [3], (z, y, x) in mm.

    Items differ in size as the images do: bring them to one size in ``transform``, or use batches of one. Nothing that
    is open crosses a fork or a pickle, so workers may be forked or spawned.

    Args:
        dataset: the data set.
        kind: ``slices`` or ``volumes``.
        decisions: which cases.
        ignore: level of uncertainty from which voxels are ignored; None: none are.
        labelled_only: leave out slices that are all background.
        transform: called on each item.
        cache_mb: megabytes of decoded label maps, and of images read from source files, that each process keeps.

    Raises:
        InputError: no case has one of these decisions, the level is out of bounds, or no uncertainty is stored.
    """

    def __init__(
        self,
        dataset: PseudoLabelSet,
        kind: Literal["slices", "volumes"] = "slices",
        decisions: Sequence[Decision] = ("accept",),
        ignore: float | None = None,
        labelled_only: bool = False,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        cache_mb: int = 256,
    ) -> None:
        if kind not in ("slices", "volumes"):
            raise InputError(f"'{kind}' is no kind of item; use slices or volumes")
        self.kind = kind
        self.ignore = ignore
        self.ignore_index = dataset.ignore_value if max(dataset.classes, default=0) < 255 else -100
        """Label of ignored voxels, for the loss's ``ignore_index``."""
        self.transform = transform
        self.cases = dataset.cases(decisions)
        self._budget = cache_mb * 2**20
        self._open()
        if ignore is not None:
            check_level(ignore)
            self._check_uncertainty()
        self._items = self._list_items(labelled_only)

    def _open(self) -> None:
        self._process = os.getpid()
        self._kept: OrderedDict[tuple[str, int], npt.NDArray[Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_process": None}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Confidence of each item, float64 [N], for example for a ``WeightedRandomSampler``."""
        return np.array([self.cases[place].weight for place, _ in self._items])

    @property
    def patients(self) -> list[str]:
        """Patient of each item, for splits by patient."""
        return [self.cases[place].patient for place, _ in self._items]

    def __getitem__(self, index: int) -> Any:
        if self._process != os.getpid():
            # A forked worker: clients of object stores and their threads live in the parent alone.
            self.cases = pickle.loads(pickle.dumps(self.cases))  # noqa: S301 - our own objects
            self._open()
        place, z = self._items[index]
        case = self.cases[place]
        labels = self._label(place)
        item: dict[str, Any]
        if self.kind == "slices":
            # The workspace's copy is read slice by slice; a source file only as a whole.
            image = case.image(z, z + 1)[0] if case.stored is not None else self._image(place)[z]
            item = {"image": _tensor(image, 2), "label": torch.from_numpy(labels[z].astype(np.int64)), "slice": z}
        else:
            item = {"image": _tensor(case.image(), 3), "label": torch.from_numpy(labels.astype(np.int64))}
        item |= {
            "weight": torch.tensor(case.weight, dtype=torch.float32),
            "spacing": torch.tensor(case.spacing, dtype=torch.float32),
            "case": case.id,
            "patient": case.patient,
        }
        return item if self.transform is None else self.transform(item)

    def _label(self, place: int) -> npt.NDArray[np.uint8]:
        return self._remembered("label", place, lambda case: case.label(self.ignore))

    def _image(self, place: int) -> npt.NDArray[np.float32]:
        return self._remembered("image", place, lambda case: case.image())

    def _remembered(
        self, what: str, place: int, read: Callable[[PseudoLabelCase], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Return an array of a case, from memory where it is there: slices of a case often follow each other."""
        found = self._kept.pop((what, place), None)
        if found is None:
            found = read(self.cases[place])
        self._kept[what, place] = found
        while len(self._kept) > 1 and sum(array.nbytes for array in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)
        return found

    def _check_uncertainty(self) -> None:
        lacking = [case.name for case in self.cases if case.origin.uncertainty(case.entry) is None]
        if lacking:
            raise InputError(
                f"no uncertainty is stored for {len(lacking)} of {len(self.cases)} cases, the first is '{lacking[0]}'; "
                "load the data set from its workspace, or go on without ignore"
            )

    def _list_items(self, labelled_only: bool) -> list[tuple[int, int]]:
        if self.kind == "volumes":
            return [(place, 0) for place in range(len(self.cases))]
        if not labelled_only:
            return [(place, z) for place, case in enumerate(self.cases) for z in range(case.n_slices)]
        return [(place, z) for place, case in enumerate(self.cases) for z in _foreground(case)]


def _foreground(case: PseudoLabelCase) -> list[int]:
    return [int(z) for z in np.flatnonzero(case.label().any(axis=(1, 2)))]


def _tensor(pixels: npt.NDArray[np.float32], axes: int) -> torch.Tensor:
    """Return pixels with so many spatial axes, colours last or none, as a tensor with channels first."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0) if pixels.ndim > axes else pixels[None]))

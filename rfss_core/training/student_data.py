"""What a student learns from: pseudo-labelled cases of a data set beside the cases that experts labelled."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.datasets import PseudoLabelCase, PseudoLabelSet
from rfss_core.digest import digest_json
from rfss_core.errors import InputError
from rfss_core.imaging import discover
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.quality import SplitCase, refuse_leak, split_cases, split_patients, with_reviewed
from rfss_core.settings import StudentSettings
from rfss_core.store import Manifest
from rfss_core.training.expert_case import ExpertCase
from rfss_core.training.labelled import Provenance

_KEPT_MB = 512


class StudentSlices:
    """Slices of cases as :func:`rfss_core.training.train_supervised` reads them; safe for several threads.

    Args:
        cases: experts' and pseudo-labelled ones.
        classes: label value to name.
        ignore: uncertainty from which voxels of pseudo-labels teach nothing.
    """

    def __init__(
        self, cases: Sequence[ExpertCase | PseudoLabelCase], classes: Mapping[int, str], ignore: float | None
    ) -> None:
        self._cases = list(cases)
        self._ignore = ignore
        self._items = [(place, z) for place, case in enumerate(cases) for z in range(case.n_slices)]
        self.classes = dict(classes)
        self.ids = [f"{cases[place].id}:{z}" for place, z in self._items]
        self.patients = [cases[place].patient for place, _ in self._items]
        self._labels: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int, /) -> npt.NDArray[np.float32]:
        """Return slice ``index``, float32 [H, W] or [H, W, 3] in [0, 1]."""
        place, z = self._items[index]
        plane: npt.NDArray[np.float32] = self._cases[place].image(z, z + 1)[0]
        return plane

    def mask(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Return its label map, uint8 [H, W]."""
        place, z = self._items[index]
        plane: npt.NDArray[np.uint8] = self._label(place)[z]
        return plane

    def each(self, of_case: Sequence[Any]) -> list[Any]:
        """Repeat a value of each case for its slices."""
        return [of_case[place] for place, _ in self._items]

    def _label(self, place: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            known = self._labels.get(place)
            if known is not None:
                self._labels.move_to_end(place)
                return known
        case = self._cases[place]
        found = case.label(self._ignore) if isinstance(case, PseudoLabelCase) else case.label()
        with self._lock:
            self._labels[place] = found
            while len(self._labels) > 1 and sum(one.nbytes for one in self._labels.values()) > _KEPT_MB * 2**20:
                self._labels.popitem(last=False)
        return found


@dataclass(frozen=True, eq=False)
class StudentData:
    """All that a student is trained and tested on."""

    slices: StudentSlices
    provenance: Provenance
    test: list[ExpertCase]
    classes: dict[int, str]
    digest: str
    """sha256 over data set, experts' cases, their parts, weights and ignored voxels."""
    counts: dict[str, int]
    """Patients and cases by part."""
    alone: StudentData | None = None
    """The same without pseudo-labels, whatever the data set; None where no expert's patient trains."""


def gather(dataset: PseudoLabelSet, settings: StudentSettings) -> StudentData:
    """Bring pseudo-labels and experts' labels together, by patient.

    Of the workspace's labelled patients, those who served as supports train; the others, whom the labelling run held
    out, are divided into patients who are tested and patients who validate. Of an own folder ``test_share`` of the
    patients are tested, and ``training.validation_share`` of the others validate. A patient who is tested or
    validates trains nothing, with no pseudo-label either.

    Args:
        dataset: the registered set.
        settings: the student's.

    Returns:
        The data; nothing but labels' headers is read yet.

    Raises:
        InputError: no accepted case, no expert's case within reach, or classes that differ.
        LeakError: an image that is tested trains too, under another patient's name.
    """
    pseudo = dataset.cases(settings.decisions)
    # Read as the labelling run read its images: a patient must have one name on both sides.
    own = settings.images is not None
    experts = _own_cases(settings, dataset) if own else _workspace_cases(dataset)
    if not experts:
        raise InputError(
            f"no expert's case is within reach of data set '{dataset}'; name the labelled images and their labels with "
            "images and labels (--images, --labels)"
        )
    _check_classes(experts, dataset)
    tested, validates = _divide(experts, dataset, settings)
    training = [case for case in experts if case.patient not in tested]
    pseudo = [case for case in pseudo if case.patient not in tested | (validates or set())]
    if not pseudo:
        raise InputError(f"every pseudo-labelled case of '{dataset}' is of a patient who validates or is tested")
    trains = any(case.patient not in (validates or set()) for case in training)
    test = [case for case in experts if case.patient in tested]
    _refuse_leak(training, pseudo, test, dataset)
    alone = _data(dataset, training, [], test, validates, settings) if trains else None
    return replace(_data(dataset, training, pseudo, test, validates, settings), alone=alone)


def _data(
    dataset: PseudoLabelSet,
    training: Sequence[ExpertCase],
    pseudo: Sequence[PseudoLabelCase],
    test: list[ExpertCase],
    validates: set[str] | None,
    settings: StudentSettings,
) -> StudentData:
    ignore = settings.ignore if pseudo else None
    slices = StudentSlices([*training, *pseudo], dataset.classes, ignore)
    weights = [1.0] * len(training) + [case.weight if settings.weighted else 1.0 for case in pseudo]
    provenance = Provenance(
        weights=slices.each(weights),
        expert=slices.each([True] * len(training) + [False] * len(pseudo)),
        ignore=None if ignore is None else dataset.ignore_value,
        validates=None
        if validates is None
        else slices.each([case.patient in validates for case in training] + [False] * len(pseudo)),
    )
    parts = {
        "dataset": dataset.digest if pseudo else None,
        "classes": [[value, name] for value, name in sorted(dataset.classes.items())],
        "experts": [[case.id, case.digest] for case in training],
        "validates": None if validates is None else sorted(validates),
        "test": [[case.id, case.digest] for case in test],
        "pseudo": [[case.id, case.entry.sha256] for case in pseudo],
        "weights": weights,
        "ignore": ignore,
    }
    counts = {
        "expert_cases": len(training),
        "expert_patients": len({case.patient for case in training}),
        "validation_patients": len(validates or ()),
        "test_cases": len(test),
        "test_patients": len({case.patient for case in test}),
        "pseudo_cases": len(pseudo),
        "pseudo_patients": len({case.patient for case in pseudo}),
        "slices": len(slices),
    }
    return StudentData(slices, provenance, test, dataset.classes, digest_json(parts), counts)


def _refuse_leak(
    training: Sequence[ExpertCase],
    pseudo: Sequence[PseudoLabelCase],
    test: Sequence[ExpertCase],
    dataset: PseudoLabelSet,
) -> None:
    """Look for copies of tested images among those that train; of pseudo-labelled ones where the workspace is there."""
    workspace = dataset.origin.workspace
    cases = None if workspace is None else Manifest.read(workspace.files).cases
    trains = [SplitCase(case.id, case.patient, case.pixels) for case in training]
    if cases is not None:
        trains += split_cases(cases, [case.id for case in pseudo])
    refuse_leak(trains, [SplitCase(case.id, case.patient, case.pixels) for case in test])


def _divide(
    experts: Sequence[ExpertCase], dataset: PseudoLabelSet, settings: StudentSettings
) -> tuple[set[str], set[str] | None]:
    """Return patients who are tested and who validate; None leaves the latter to the training's settings."""
    names = sorted({case.patient for case in experts})
    if settings.images is not None:
        free, drawn = names, None
    else:
        free, drawn = sorted(_held_out(dataset)), set[str]()
    if not settings.test_share:
        return set(), None if drawn is None else set(free)
    if len(free) < 2:
        return (set(free), drawn) if drawn is not None else (set(), None)
    split = split_patients(free, settings.test_share, settings.seed)
    return set(split.held_out), None if drawn is None else set(split.support)


def _held_out(dataset: PseudoLabelSet) -> frozenset[str]:
    """Return the patients that the labelling run held out, by the split that it made."""
    workspace = dataset.origin.workspace
    assert workspace is not None
    cases = Manifest.read(workspace.files).cases
    labelled = cases[cases["labelled"]]
    reviewed = labelled["label_source"] == REVIEWED_SOURCE
    said = dataset.manifest.meta["settings"]
    split = split_patients(labelled.loc[~reviewed, "patient"].tolist(), said["held_out"], said["seed"])
    return with_reviewed(split, labelled.loc[reviewed, "patient"].tolist()).held_out


def _workspace_cases(dataset: PseudoLabelSet) -> list[ExpertCase]:
    workspace = dataset.origin.workspace
    if workspace is None:
        return []
    cases = Manifest.read(workspace.files).cases
    found = []
    for row in cases[cases["labelled"]].itertuples():
        stored = workspace.case(str(row.case_id))
        found.append(
            ExpertCase(str(row.case_id), str(row.patient), stored.source_digest, str(row.pixel_digest), stored=stored)
        )
    return sorted(found, key=lambda case: case.id)


def _own_cases(settings: StudentSettings, dataset: PseudoLabelSet) -> list[ExpertCase]:
    imaging = dataset.origin.settings
    assert settings.images is not None
    found = discover(settings.images, settings.labels, imaging, dataset.origin.pseudonyms)
    return [
        ExpertCase.of(case, imaging)
        for case in sorted(found.cases, key=lambda case: case.case_id)
        if case.label is not None
    ]


def _check_classes(experts: Sequence[ExpertCase], dataset: PseudoLabelSet) -> None:
    for case in experts:
        unknown = sorted(set(np.unique(case.label()).tolist()) - {0, *dataset.classes})
        if unknown:
            raise InputError(
                f"the expert's label of case '{case.id}' holds class {unknown[0]}, but '{dataset}' has the classes "
                f"{dataset.classes}; label again with the same imaging.classes, or train on cases of these classes"
            )

"""What a network trains on: slices, where their labels come from, and who trains, who validates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rfss_core.errors import SupportError
from rfss_core.segmentation.segmenter import Supports
from rfss_core.settings import SupervisedSettings

Rows = npt.NDArray[np.int64]


class LabelledSlices(Supports, Protocol):
    """Slices to train on, read when they are asked for; a :class:`rfss_core.retrieval.SupportSet` is one."""

    @property
    def patients(self) -> Sequence[str]:
        """Patient of each slice."""


@dataclass(frozen=True)
class Provenance:
    """Where the labels of slices come from."""

    weights: Sequence[float]
    """Confidence of each slice, 0 to 1; 1 where an expert labelled it."""
    expert: Sequence[bool]
    """Whether an expert labelled it: only such slices validate."""
    ignore: int | None = None
    """Label value of voxels that teach nothing, if there are any; no class has it."""
    validates: Sequence[bool] | None = None
    """Slices whose patients only validate. Default: as the settings draw among the experts' patients."""


@dataclass(frozen=True, eq=False)
class Roles:
    """Indices of slices by what they do; together they leave out pseudo-labels of patients who validate."""

    expert: Rows
    """Train, labelled by an expert."""
    pseudo: Rows
    """Train, pseudo-labelled."""
    validating: Rows
    """Choose the round that counts, and when to stop."""


def divide(data: LabelledSlices, provenance: Provenance | None, settings: SupervisedSettings, seed: int) -> Roles:
    """Divide slices into those that train and those whose patients validate.

    Args:
        data: the slices.
        provenance: of their labels; default: experts labelled all.
        settings: share and least number of patients who validate.
        seed: of the draw.

    Returns:
        The roles. No patient trains and validates.

    Raises:
        SupportError: the provenance does not fit the slices, a pseudo-label should validate, or nobody is left.
    """
    if provenance is None:
        training, validating = split_slices(data.patients, settings, seed)
        return Roles(training, training[:0], validating)
    _check(data, provenance)
    patients, expert = np.asarray(data.patients), np.asarray(provenance.expert, dtype=bool)
    if provenance.validates is None:
        rows = np.flatnonzero(expert)
        validating = rows[split_slices(patients[rows].tolist(), settings, seed)[1]]
    else:
        validating = np.flatnonzero(provenance.validates)
    trains = ~np.isin(patients, patients[validating])
    if not trains.any():
        raise SupportError(f"all {len(data)} slices are of patients who validate; name others to train on")
    return Roles(np.flatnonzero(trains & expert), np.flatnonzero(trains & ~expert), validating)


def split_slices(patients: Sequence[str], settings: SupervisedSettings, seed: int) -> tuple[Rows, Rows]:
    """Divide slices into those that train and those whose patients validate; the second may be empty.

    Args:
        patients: of each slice.
        settings: share and least number of patients.
        seed: of the draw.

    Returns:
        Indices of both.
    """
    names = sorted(set(patients))
    count = 0
    if settings.validation_share and len(names) >= settings.validation_patients:
        count = max(1, round(settings.validation_share * len(names)))
    drawn = np.random.default_rng([seed, len(names)]).permutation(len(names))[:count]
    validates = np.isin(np.asarray(patients), [names[place] for place in drawn])
    return np.flatnonzero(~validates), np.flatnonzero(validates)


class Order:
    """The endless sequence of slices that a training sees: shuffled epochs, a share of the places for experts' slices.

    Args:
        roles: who trains.
        expert_share: share of the places; None: by number.
        seed: of the shuffles.
    """

    def __init__(self, roles: Roles, expert_share: float | None, seed: int) -> None:
        self._seed = seed
        mixed = expert_share is not None and len(roles.expert) and len(roles.pseudo)
        self._share = expert_share if mixed and expert_share is not None else 1.0
        self._first = roles.expert if mixed else np.sort(np.concatenate([roles.expert, roles.pseudo]))
        self._second = roles.pseudo
        self._shuffles: dict[int, tuple[int, Rows]] = {}

    def at(self, place: int) -> int:
        """Return the slice at a place of the sequence; it depends on the seed and the place alone."""
        before, after = (int(self._share * number + 1e-9) for number in (place, place + 1))
        if after > before:
            return self._shuffled(self._first, before, 0)
        return self._shuffled(self._second, place - before, 1)

    def _shuffled(self, rows: Rows, place: int, stream: int) -> int:
        epoch, within = divmod(place, len(rows))
        known = self._shuffles.get(stream)
        if known is None or known[0] != epoch:
            # One epoch a stream is kept: places are asked for one after the other. A pair, so that threads see a whole.
            key = [self._seed, epoch] if stream == 0 else [self._seed, epoch, stream]
            known = self._shuffles[stream] = (epoch, rows[np.random.default_rng(key).permutation(len(rows))])
        return int(known[1][within])


def _check(data: LabelledSlices, provenance: Provenance) -> None:
    lengths = {len(provenance.weights), len(provenance.expert), len(provenance.validates or provenance.expert)}
    if lengths != {len(data)}:
        raise SupportError(f"the provenance is of {sorted(lengths)} slices, the data are {len(data)}; give one of each")
    if provenance.ignore in data.classes:
        raise SupportError(f"label value {provenance.ignore} is a class and cannot mark ignored voxels; take another")
    for row, weight in enumerate(provenance.weights):
        if not 0 <= weight <= 1:
            raise SupportError(f"slice '{data.ids[row]}' has the weight {weight}; weights lie between 0 and 1")
    wrong = np.flatnonzero(~np.asarray(provenance.expert) & np.asarray(provenance.validates or [False] * len(data)))
    if len(wrong):
        raise SupportError(f"slice '{data.ids[wrong[0]]}' is pseudo-labelled and cannot validate; name experts' slices")

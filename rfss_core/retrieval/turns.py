"""Turns of patients: who may give the next slice to be labelled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rfss_core.errors import SettingsError
from rfss_core.settings import SelectionSettings


class PatientTurns:
    """Which slices may be chosen now, so that a choice spreads over patients.

    With ``settings.spread`` only patients that gave the fewest slices so far, of those that have one left; with
    ``settings.per_patient`` none that gave so many.

    Args:
        patients: the patient of each slice.
        available: bool [N], slices that have no label.
        settings: number of slices and how they spread.

    Raises:
        SettingsError: fewer than ``settings.n`` slices can be chosen.
    """

    def __init__(self, patients: Sequence[str], available: npt.NDArray[np.bool_], settings: SelectionSettings) -> None:
        names = {patient: code for code, patient in enumerate(dict.fromkeys(patients))}
        self._code = np.array([names[patient] for patient in patients], dtype=np.int64)
        self._available = available.copy()
        self._given = np.zeros(len(names), dtype=np.int64)
        self._left = np.bincount(self._code[available], minlength=len(names))
        self._spread = settings.spread
        if settings.per_patient is not None:
            self._left = np.minimum(self._left, settings.per_patient)
        if settings.n > self._left.sum():
            limit = "" if settings.per_patient is None else f" with at most {settings.per_patient} of one patient"
            raise SettingsError(
                f"n is {settings.n}, but only {self._left.sum()} of {len(available)} slices can be chosen{limit} "
                f"({len(available) - available.sum()} have a label already); lower --n"
            )

    def open(self) -> npt.NDArray[np.bool_]:
        """Return which slices may be chosen now: bool [N]."""
        ready = self._left > 0
        if self._spread:
            ready &= self._given == self._given[ready].min()
        return np.asarray(self._available & ready[self._code], dtype=np.bool_)

    def take(self, row: int) -> None:
        """Note that a slice was chosen."""
        self._available[row] = False
        self._given[self._code[row]] += 1
        self._left[self._code[row]] -= 1

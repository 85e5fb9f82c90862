"""Random choice of slices, spread evenly over patients."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def draw_evenly(ids: Sequence[str], patients: Sequence[str], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw n slices: one of each patient in turn, until n are drawn.

    The draw depends on ids, patients and seed alone, not on the order of the slices, and drawing again from what was
    drawn changes nothing. The first m of n drawn slices are what a draw of m gives.

    Args:
        ids: one distinct name a slice.
        patients: the patient of each slice.
        n: slices to draw; all are drawn where there are fewer.
        seed: another seed, another draw.

    Returns:
        int64 rows in the order of the draw.
    """
    of_patient = {patient: seeded_rank(seed, "patient", patient) for patient in set(patients)}
    turns: dict[str, int] = {}
    order = []
    for _, row in sorted((seeded_rank(seed, "slice", name), row) for row, name in enumerate(ids)):
        patient = patients[row]
        turns[patient] = turns.get(patient, -1) + 1
        order.append((turns[patient], of_patient[patient], row))
    return np.array([row for _, _, row in sorted(order)[:n]], dtype=np.int64)


def seeded_rank(seed: int, kind: str, name: str) -> bytes:
    """Return a place in a random order that depends on seed, kind and name alone."""
    return hashlib.sha256(f"{seed}/{kind}/{name}".encode()).digest()

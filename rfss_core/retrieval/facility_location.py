"""Greedy facility location: keep the mean distance to a chosen slice small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.coverage import NearestChosen
from rfss_core.retrieval.draw import draw_evenly
from rfss_core.retrieval.index import Vectors
from rfss_core.retrieval.pool import SlicePool
from rfss_core.retrieval.turns import PatientTurns
from rfss_core.settings import SelectionSettings

SAMPLE = 8192
"""Slices among which is chosen where there are more: their distances fill 128 MiB."""
_STEPS = 2**14
"""Steps in a distance of 1: distances are whole numbers of steps, so that sums are exact in any order."""
_BLOCK = 256


def facility_location(
    pool: SlicePool, start: NearestChosen, settings: SelectionSettings, seed: int, sample: int = SAMPLE
) -> npt.NDArray[np.int64]:
    """Choose again and again the slice that lowers the mean distance to the nearest chosen one the most.

    What n slices so chosen take off the mean is at least 1 - 1/e of what the best n can (Nemhauser, Wolsey and Fisher,
    An analysis of approximations for maximizing submodular set functions, 1978), where patients take no turns and all
    slices are looked at. Gains are computed again only where they may still be the largest (Minoux, Accelerated greedy
    algorithms for maximizing submodular set functions, 1978), which changes no choice. Without labelled slices the
    first choice is the medoid. Time grows with the square of the slices that are looked at.

    Args:
        pool: all slices; of equal gains the first by id is chosen.
        start: distances to the labelled slices, if any; left as it is.
        settings: number of slices and how they spread over patients.
        seed: of the draw of ``sample`` slices, evenly over patients, where more have no label.
        sample: among so many slices is chosen, and their mean distance counts; n where that is more.

    Returns:
        int64 rows [n] in order of choice.

    Raises:
        SettingsError: fewer than n slices can be chosen.
    """
    PatientTurns(pool.patients, ~pool.labelled, settings)  # before the sample makes the figures of its message smaller
    rows = _looked_at(pool, max(sample, settings.n), seed)
    turns = PatientTurns([pool.patients[row] for row in rows.tolist()], np.ones(len(rows), dtype=np.bool_), settings)
    apart = _distances(pool.vectors[rows])
    # Nothing is farther than 2: what no slice covers yet can only gain.
    nearest = np.rint(np.sqrt(np.minimum(start.squared[rows], 4.0)) * _STEPS).astype(np.int32)
    gains = np.concatenate([_gains(apart[first : first + _BLOCK], nearest) for first in range(0, len(rows), _BLOCK)])
    chosen = []
    for _ in range(settings.n):
        candidates = np.flatnonzero(turns.open())
        current = np.zeros(len(rows), dtype=np.bool_)
        while not current[best := int(candidates[gains[candidates].argmax()])]:
            # Gains never rise, so one that was computed earlier is a bound.
            gains[best], current[best] = _gains(apart[best : best + 1], nearest)[0], True
        chosen.append(best)
        nearest = np.minimum(nearest, apart[best])
        turns.take(best)
    return np.asarray(rows[chosen], dtype=np.int64)


def _looked_at(pool: SlicePool, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Return unlabelled rows in the order of their ids."""
    rows = np.flatnonzero(~pool.labelled)
    if len(rows) > most:
        listed = rows.tolist()
        drawn = draw_evenly([pool.ids[row] for row in listed], [pool.patients[row] for row in listed], most, seed)
        rows = rows[drawn]
    return np.asarray(rows[np.argsort(pool.place[rows])], dtype=np.int64)


def _distances(vectors: Vectors) -> npt.NDArray[np.uint16]:
    """Return all L2 distances in steps: uint16 [M, M]."""
    wide = vectors.astype(np.float64)
    # Lengths are 1 to float32's precision only, which a small distance would show.
    lengths = np.sum(wide * wide, axis=1)
    apart = np.empty((len(wide), len(wide)), dtype=np.uint16)
    for first in range(0, len(wide), _BLOCK):
        squared = lengths[first : first + _BLOCK, None] + lengths - 2 * (wide[first : first + _BLOCK] @ wide.T)
        apart[first : first + _BLOCK] = np.rint(np.sqrt(np.clip(squared, 0, 4)) * _STEPS)
    return apart


def _gains(apart: npt.NDArray[np.uint16], nearest: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return by how many steps each candidate lowers the sum of distances: int64 [m]."""
    return np.asarray(np.maximum(nearest - apart.astype(np.int32), 0).sum(axis=1, dtype=np.int64))

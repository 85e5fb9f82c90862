"""Greedy k-center: keep the largest distance to a chosen slice small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.coverage import NearestChosen
from rfss_core.retrieval.draw import seeded_rank
from rfss_core.retrieval.pool import SlicePool
from rfss_core.retrieval.turns import PatientTurns
from rfss_core.settings import SelectionSettings


def k_center(pool: SlicePool, start: NearestChosen, settings: SelectionSettings, seed: int) -> npt.NDArray[np.int64]:
    """Choose again and again the slice that is farthest from all chosen ones.

    The covering radius is at most twice the least that n slices can reach (Gonzalez, Clustering to minimize the maximum
    intercluster distance, 1985; as active learning: Sener and Savarese, Active learning for convolutional neural
    networks: a core-set approach, 2018); the bound holds where patients take no turns. Outliers are chosen first, be
    they rare anatomy or slices that show nothing. Time grows with n times N.

    Args:
        pool: all slices; of equally far ones the first by id is chosen.
        start: distances to the labelled slices; without any, the seed draws the first choice. Left as it is.
        settings: number of slices and how they spread over patients.
        seed: of the first choice.

    Returns:
        int64 rows [n] in order of choice.

    Raises:
        SettingsError: fewer than n slices can be chosen.
    """
    turns = PatientTurns(pool.patients, ~pool.labelled, settings)
    nearest, rows = start.copy(), []
    for _ in range(settings.n):
        candidates = np.flatnonzero(turns.open())
        if nearest.owner[0] < 0:
            row = min(candidates.tolist(), key=lambda row: seeded_rank(seed, "slice", pool.ids[row]))
        else:
            squared = nearest.squared[candidates]
            farthest = candidates[squared == squared.max()]
            row = int(farthest[pool.place[farthest].argmin()])
        rows.append(row)
        nearest.add(row)
        turns.take(row)
    return np.array(rows, dtype=np.int64)

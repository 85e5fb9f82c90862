"""Core set: which unlabelled slices to label, so that all others have a labelled one near."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.coverage import BLOCK_ROWS, Coverage, NearestChosen, curve_counts, grow, mean_curve
from rfss_core.retrieval.draw import draw_evenly
from rfss_core.retrieval.facility_location import facility_location
from rfss_core.retrieval.k_center import k_center
from rfss_core.retrieval.pool import SlicePool
from rfss_core.settings import SelectionSettings


@dataclass(frozen=True, eq=False)
class CoreSet:
    """Slices to label, the first first.

    Attributes:
        rows: int64 [n], in order of choice.
        distances: float64 [n], L2 distance of each to the nearest slice that was labelled or chosen before it; infinite
            for the first of all.
        covers: int64 [n], how many unlabelled slices have it as their nearest chosen or labelled one, itself included.
        curve: coverage of the unlabelled slices by the first of these, for several numbers of them.
        random_curve: the same by random choices, the mean of ``settings.random_draws`` draws.
    """

    rows: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float64]
    covers: npt.NDArray[np.int64]
    curve: list[Coverage]
    random_curve: list[Coverage]


def choose_core_set(
    pool: SlicePool, settings: SelectionSettings, seed: int = 0, block_rows: int = BLOCK_ROWS
) -> CoreSet:
    """Choose the slices to label next from embeddings alone. Labelled slices count as chosen.

    ``settings.objective`` says what is kept small: the ``mean`` distance of all unlabelled slices to the nearest chosen
    one (:func:`rfss_core.retrieval.facility_location.facility_location`), or the largest one, the ``radius``
    (:func:`rfss_core.retrieval.k_center.k_center`). With ``settings.spread`` patients take turns, one slice each.

    Neither blocks, threads nor the order of the slices change the choice. Beside the vectors a few numbers a slice are
    kept, and 128 MiB for ``mean``.

    Args:
        pool: all slices.
        settings: how many slices, by which objective, how they spread over patients.
        seed: of what is drawn: random choices to compare with, the first choice of ``radius``, a sample for ``mean``.
        block_rows: rows whose distances are computed at once.

    Returns:
        The chosen slices with their coverage, beside that of random choices, which spread evenly over patients.

    Raises:
        SettingsError: fewer slices than ``settings.n`` can be chosen.
    """
    start = NearestChosen(pool.vectors, block_rows)
    known = np.flatnonzero(pool.labelled)
    start.add(known[np.argsort(pool.place[known])])
    choose = facility_location if settings.objective == "mean" else k_center
    rows = choose(pool, start, settings, seed)
    at = curve_counts(settings.n, bool(known.size))
    growth = grow(start, rows, at, ~pool.labelled)
    free = np.flatnonzero(~pool.labelled)
    names, patients = [pool.ids[row] for row in free.tolist()], [pool.patients[row] for row in free.tolist()]
    drawn = (free[draw_evenly(names, patients, settings.n, seed + i)] for i in range(settings.random_draws))
    random = [grow(start, rows_drawn, at, ~pool.labelled).curve for rows_drawn in drawn]
    return CoreSet(rows, growth.distances, growth.covers, growth.curve, mean_curve(random))

"""Recall of an approximate index against exact search, and the number of lists that reaches a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.generations import Probing, Tuning
from rfss_core.retrieval.index import Vectors
from rfss_core.retrieval.index_plan import HELD_SHARE
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import checked_units, nearest_among
from rfss_core.settings.index import IndexKind, IndexSettings

SHARES = (1.0, 0.5, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Shares of the rows that a filter leaves, for each of which the number of lists is tuned."""
_FACTORS: dict[IndexKind, tuple[int | float, ...]] = {
    "ivf-flat": (1,),
    "ivf-sq8": (8, 4, 2, 1.25),
    "ivf-pq": (64, 32, 16, 8, 4),
}
_QUERIES_A_GROUP = 8
_RUN = 64
"""Consecutive rows that a filter of runs keeps or drops together, as filters on patients do."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Trial:
    """Queries with their true neighbours under one filter."""

    queries: Vectors
    allowed: Mask
    truth: Rows

    def recall(self, index: ShardedIndex, nprobe: int, factor: float) -> npt.NDArray[np.float64]:
        """Return the share of the true neighbours that each query finds, float64 [n]."""
        found, _ = index.probe(self.queries, self.truth.shape[1], self.allowed, nprobe, factor)
        return np.asarray((found[:, :, None] == self.truth[:, None, :]).any(axis=2).mean(axis=1), dtype=np.float64)


def hold_out(groups: npt.NDArray[np.int64], queries: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose the queries that recall is measured on: some rows of some groups, whose other rows stay out as well.

    A slice finds other slices of its own volume easily, and a new patient has none in the index: recall measured on
    rows whose groups take part would promise too much.

    Args:
        groups: int64 [N], rows that belong together (of one patient) have one number.
        queries: how many queries are wanted.
        seed: of the choice.

    Returns:
        int64 [m, 2]: row, and 1 where it is a query, 0 where it only stays out; by rising row. No more than a tenth of
        all rows are held out.
    """
    rng = np.random.default_rng([seed, len(groups)])
    by_group = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=groups[by_group[0]] - 1))
    sizes = np.diff(np.append(starts, len(groups)))
    held: list[tuple[int, int]] = []
    asked = 0
    for group in rng.permutation(len(starts)):
        members = by_group[starts[group] : starts[group] + sizes[group]]
        if held and (asked >= queries or len(held) + len(members) > HELD_SHARE * len(groups)):
            break
        chosen = set(rng.permutation(members)[:_QUERIES_A_GROUP].tolist())
        asked += len(chosen)
        held += [(int(row), int(row in chosen)) for row in members]
    return np.array(sorted(held), dtype=np.int64)


def tune(index: ShardedIndex, k: int, settings: IndexSettings, threads: int | None = None) -> Tuning:
    """Find how many lists must be searched, without a filter and with filters of several shares.

    Queries are the held-out rows of :func:`hold_out`; their groups are no one's neighbours. Half of them choose, the
    others measure what is written down. A number of lists is chosen where the recall reaches the target with its
    standard error to spare, so that the other half should reach it too; where it does not, the next larger number is
    tried. Under a filter the recall is the worse of a filter of single rows and one of runs of rows.

    Args:
        index: the index; its own tuning is not read.
        k: neighbours that recall is measured at.
        settings: target, ``nprobe`` where it is overridden, ``exact_rows``, seed.
        threads: threads of the exact search.

    Returns:
        The tuning; :attr:`Tuning.met` says whether the target was reached.
    """
    rng = np.random.default_rng(settings.seed)
    held = index.held
    own = held[held[:, 1] == 1, 0]
    k = min(k, index.size - len(held))
    queries = checked_units(index.vectors.take(own), own)
    # Neighbouring rows are alike: both halves take every other one.
    choosing, measuring = np.arange(len(own)) % 2 == 0, np.arange(len(own)) % 2 == min(1, len(own) - 1)
    factors = _FACTORS[index.generation.trained.kind]
    factor = factors[0]
    levels: list[Probing] = []
    for share in SHARES:
        rows = share * index.size
        if levels and (rows <= settings.exact_rows or rows < 4 * (k + 1)):
            break
        trials = []
        for allowed in _filters(index.size, share, rng):
            allowed[held[:, 0]] = False
            if np.count_nonzero(allowed) >= k:
                truth = nearest_among(index.vectors, queries, k, allowed, threads)[0]
                trials.append(_Trial(queries, allowed, truth))

        def recall(nprobe: int, factor: float, trials: list[_Trial] = trials) -> npt.NDArray[np.float64]:
            found = [trial.recall(index, nprobe, factor) for trial in trials]
            return min(found, key=lambda each: float(each.mean()))

        def enough(nprobe: int, factor: float, recall: Callable[..., npt.NDArray[np.float64]] = recall) -> float | None:
            found = recall(nprobe, factor)
            chosen, measured = found[choosing], float(found[measuring].mean())
            error = float(chosen.std()) / math.sqrt(len(chosen))
            least = min(1.0, settings.target_recall + error)
            return measured if chosen.mean() >= least and measured >= settings.target_recall else None

        nprobe, reached = _lists(enough, index.generation.trained.nlist, factor, settings.nprobe)
        if not levels:
            for smaller in factors[1:]:
                if reached is not None and (also := enough(nprobe, smaller)) is not None:
                    factor, reached = smaller, also
        if reached is None:
            reached = float(recall(nprobe, factor)[measuring].mean())
        levels.append(Probing(share=share, nprobe=nprobe, recall=reached))
    return Tuning(k=k, target=settings.target_recall, queries=int(measuring.sum()), factor=factor, levels=tuple(levels))


def _lists(
    enough: Callable[[int, float], float | None], nlist: int, factor: float, fixed: int | None
) -> tuple[int, float | None]:
    """Return the least number of lists that is enough, to an eighth of itself, and the recall measured there."""
    if fixed is not None:
        return min(fixed, nlist), enough(min(fixed, nlist), factor)
    low, high = 0, 1
    while (reached := enough(high, factor)) is None:
        if high == nlist:
            return nlist, None
        low, high = high, min(2 * high, nlist)
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        found = enough(middle, factor)
        if found is None:
            low = middle
        else:
            high, reached = middle, found
    return high, reached


def _filters(size: int, share: float, rng: np.random.Generator) -> list[Mask]:
    if share == 1:
        return [np.ones(size, dtype=np.bool_)]
    runs = np.repeat(rng.random(-(-size // _RUN)) < share, _RUN)[:size]
    return [rng.random(size) < share, runs]

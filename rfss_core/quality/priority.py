"""Priority of review: which corrected pseudo-label would raise the quality of the others most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError
from rfss_core.retrieval import draw_evenly, unit_vectors

SAMPLE = 4096
"""Slices whose gain is looked at where there are more."""
GREEDY = 100
"""So many cases are chosen one after another; the others follow by what they would bring beside those."""
_STEPS = 2**14
"""Distances are whole numbers of steps, so that they do not depend on a matrix product's order of summation."""
_CELLS = 2**25
"""Numbers in the table of cases by slices: 128 MiB."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A case with a pseudo-label that somebody might correct."""

    case: str
    patient: str
    vectors: npt.NDArray[np.floating[Any]]
    """Embeddings of its slices [Z, D]; normalised here."""
    predicted: float | None
    """Predicted Dice; None (an empty pseudo-label, or no predictor) counts as 0."""
    serves: bool = True
    """Whether it may join the support set once it is corrected: not where its patient is held out."""


@dataclass(frozen=True)
class Priority:
    """A case's place in the queue."""

    case: str
    rank: int
    """From 1, the first to review."""
    gain: float
    """Expected rise of the mean Dice of the other candidates, given that those before it are corrected."""


def rank_candidates(
    candidates: Sequence[Candidate], support: npt.NDArray[np.floating[Any]], k: int, seed: int = 0, sample: int = SAMPLE
) -> list[Priority]:
    """Order cases by what correcting them is expected to do for the others.

    A corrected case joins the support set, and its slices serve others. What is wrong with a slice (1 - predicted Dice
    of its case) is taken to shrink in proportion to the mean L2 distance of the k support slices that serve it; the
    corrected case's nearest slice takes the place of the farthest of the k. So a case comes first that many poor cases
    look like. The next is chosen as if the first were corrected already: greedy facility location (Nemhauser, Wolsey,
    Fisher 1978) weighted by expected loss, a form of density-weighted active learning (Settles, Craven, An analysis of
    active learning strategies for sequence labeling tasks, EMNLP 2008). Gains are evaluated lazily (Minoux 1978), which
    changes no choice.

    How poor the case itself is does not count: the poorest are often unlike all others, and correcting those first
    helped the others less than random cases did (docs/review.md). The proportion is an assumption: the order is what
    counts, the figure is an upper guess.

    Args:
        candidates: cases with pseudo-labels.
        support: embeddings of the support slices [M, D].
        k: support slices that serve a slice.
        seed: of the draw of ``sample`` slices, evenly over cases, where there are more.
        sample: so many slices are looked at.

    Returns:
        All candidates, the first to review first; equals by name.

    Raises:
        InputError: a case without slices or given twice, no support slice, or k below 1.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.case)
    names = [candidate.case for candidate in ordered]
    if len(set(names)) != len(names) or any(not len(candidate.vectors) for candidate in ordered):
        raise InputError("candidates for review need one name and at least one slice each")
    if k < 1 or not len(support):
        raise InputError(f"expected gain needs support slices and k of at least 1, got {len(support)} and {k}")
    if not ordered:
        return []
    return _Queue(ordered, support, k, seed, sample).ranked()


class _Queue:
    """Distances of a sample of slices to the supports and to every candidate."""

    def __init__(self, ordered: list[Candidate], support: npt.NDArray[Any], k: int, seed: int, sample: int) -> None:
        self._candidates = ordered
        counts = np.array([len(candidate.vectors) for candidate in ordered])
        case_of = np.repeat(np.arange(len(ordered)), counts)
        vectors = unit_vectors(np.concatenate([candidate.vectors for candidate in ordered]))[0]
        most = max(len(ordered), min(sample, _CELLS // len(ordered)))
        rows = np.arange(len(vectors))
        if len(rows) > most:
            ids = [f"{ordered[case].case}:{row:09d}" for row, case in enumerate(case_of.tolist())]
            rows = np.sort(draw_evenly(ids, [ordered[case].case for case in case_of.tolist()], most, seed))
        queries = vectors[rows].astype(np.float64)
        self._case_of = case_of[rows]
        loss = np.array([1.0 - (candidate.predicted or 0.0) for candidate in ordered])
        seen = np.bincount(self._case_of, minlength=len(ordered))
        self._weights: Floats = (loss / len(ordered) / np.maximum(seen, 1))[self._case_of]
        self._k = min(k, len(support))
        self._served = _nearest(queries, unit_vectors(support)[0], self._k)  # [Q, k]
        self._before: Floats = self._served.mean(axis=1)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._apart = _nearest_of_each(queries, vectors, starts)  # [cases, Q]
        patients = np.array([candidate.patient for candidate in ordered])
        of = patients[self._case_of]
        for case, candidate in enumerate(ordered):
            # Retrieval leaves a query's own patient out.
            self._apart[case, of == patients[case] if candidate.serves else slice(None)] = np.iinfo(np.uint16).max

    def ranked(self) -> list[Priority]:
        count = len(self._candidates)
        gains = np.array([self._gain(case) for case in range(count)])
        left = np.ones(count, dtype=np.bool_)
        chosen: list[Priority] = []
        for rank in range(1, min(GREEDY, count) + 1):
            current = ~left
            while not current[best := int(np.where(left, gains, -1.0).argmax())]:
                # Gains never rise, so one that was computed earlier is a bound.
                gains[best], current[best] = self._gain(best), True
            chosen.append(Priority(self._candidates[best].case, rank, float(gains[best])))
            left[best] = False
            self._serve(best)
        rest = sorted((-self._gain(case), case) for case in np.flatnonzero(left).tolist())
        return chosen + [
            Priority(self._candidates[case].case, len(chosen) + number, -gain)
            for number, (gain, case) in enumerate(rest, 1)
        ]

    def _gain(self, case: int) -> float:
        closer = np.maximum(self._served[:, -1].astype(np.int64) - self._apart[case], 0) / self._k
        others = self._case_of != case
        share = np.divide(closer, self._before, out=np.zeros_like(self._before), where=self._before > 0)
        return float((self._weights * share)[others].sum())

    def _serve(self, case: int) -> None:
        """Let the case's nearest slice serve where it is nearer than the farthest support; the case itself is right."""
        worst = np.minimum(self._served[:, -1], self._apart[case])
        self._served = np.sort(np.column_stack([self._served[:, :-1], worst]), axis=1)
        self._weights[self._case_of == case] = 0.0


def _steps(queries: Floats, others: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Return L2 distances of unit vectors in steps: uint16 [Q, M]."""
    wide = others.astype(np.float64)
    squared = (queries * queries).sum(axis=1)[:, None] + (wide * wide).sum(axis=1) - 2 * (queries @ wide.T)
    steps: npt.NDArray[np.uint16] = np.rint(np.sqrt(np.clip(squared, 0, 4)) * _STEPS).astype(np.uint16)
    return steps


def _nearest(queries: Floats, support: npt.NDArray[Any], k: int) -> npt.NDArray[np.uint16]:
    """Return the k smallest distances of each query, rising: uint16 [Q, k]."""
    found = np.empty((len(queries), 0), dtype=np.uint16)
    for first in range(0, len(support), 4096):
        both = np.concatenate([found, _steps(queries, support[first : first + 4096])], axis=1)
        found = np.sort(both, axis=1)[:, :k]
    return found


def _nearest_of_each(
    queries: Floats, vectors: npt.NDArray[Any], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint16]:
    """Return each query's distance to the nearest slice of each case: uint16 [cases, Q]."""
    ends = np.append(starts[1:], len(vectors))
    found = np.empty((len(starts), len(queries)), dtype=np.uint16)
    for case, (first, last) in enumerate(zip(starts, ends, strict=True)):
        found[case] = _steps(queries, vectors[first:last]).min(axis=1)
    return found

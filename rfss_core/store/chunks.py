"""Chunk plan: which whole cases form one unit of work, of retry and of writing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pandas as pd

from rfss_core.digest import digest_json

CAP = 2
"""Hard cap of a chunk's slices, in targets; only a single case may exceed it."""


@dataclass(frozen=True)
class Chunk:
    """A run of whole cases, sorted by case id."""

    id: str
    """First 16 hexadecimal digits of the digest of its cases' ids and content."""
    case_ids: tuple[str, ...]
    n_slices: int


@dataclass(frozen=True)
class _Case:
    id: str
    content: tuple[str, str]
    n_slices: int
    draw: float


def plan_chunks(cases: pd.DataFrame, target_slices: int = 64) -> list[Chunk]:
    """Cut cases into chunks at boundaries that their own ids decide.

    Content-defined chunking (as in LBFS, Muthitacharoen et al. 2001, over cases instead of bytes): a case ends its
    chunk when the hash of its id, drawn uniformly from [0, 1), is below n_slices / target_slices. So chunks have
    about target_slices slices, and one case more or fewer changes the chunk that it falls into, splits it in two
    or joins two, and leaves all others alone. A run above the cap is cut at its lowest draws, recursively, so that
    the change stays inside that run.

    Args:
        cases: the manifest's cases, or some of them, in any order, with columns ``case_id``, ``n_slices``,
            ``source_digest`` and ``pixel_digest``.
        target_slices: slices that a chunk should have, about; twice as many at most, but for a larger case.

    Returns:
        Chunks in order of their cases' ids; every case is in exactly one.

    Raises:
        ValueError: a case id occurs twice, or ``target_slices`` is below 1.
    """
    if target_slices < 1:
        raise ValueError(f"target_slices must be at least 1, got {target_slices}")
    if cases["case_id"].duplicated().any():
        twice = sorted(cases.loc[cases["case_id"].duplicated(), "case_id"])
        raise ValueError(f"case id '{twice[0]}' occurs more than once; case ids must differ")
    columns = (cases[name].tolist() for name in ("case_id", "source_digest", "pixel_digest", "n_slices"))
    rows = sorted(zip(*columns, strict=True))
    chunks: list[Chunk] = []
    run: list[_Case] = []
    for case_id, source, pixels, n_slices in rows:
        case = _Case(case_id, (source, pixels), int(n_slices), _draw(case_id))
        run.append(case)
        if case.draw < case.n_slices / target_slices:
            chunks += _capped(run, CAP * target_slices)
            run = []
    return chunks + _capped(run, CAP * target_slices)


def _capped(run: list[_Case], cap: int) -> list[Chunk]:
    finished: list[Chunk] = []
    waiting = [run] if run else []
    while waiting:
        part = waiting.pop()
        n_slices = sum(case.n_slices for case in part)
        if n_slices <= cap or len(part) == 1:
            digest = digest_json([[case.id, *case.content] for case in part])
            finished.append(Chunk(digest[:16], tuple(case.id for case in part), n_slices))
            continue
        cut = 1 + min(range(len(part) - 1), key=lambda index: (part[index].draw, part[index].id))
        waiting += [part[cut:], part[:cut]]
    return finished


def _draw(case_id: str) -> float:
    return int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:7]) / 2**56

"""Chunks of a stage: which are left, and how one is finished."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import numpy.typing as npt
import pandas as pd

from rfss_core.store import StageStore
from tasks.run import ChunkReport


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Unit = TypeVar("Unit", bound=_HasId)


def pending(store: StageStore, units: Iterable[Unit]) -> list[Unit]:
    """Return the units without a trusted record. A chunk's id is the digest of its input."""
    return [unit for unit in units if store.trusted(unit.id, unit.id) is None]


def finish_chunk(
    store: StageStore,
    chunk_id: str,
    slices: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    tables: Mapping[str, pd.DataFrame] | None = None,
    *,
    read_s: float = 0.0,
    compute_s: float = 0.0,
) -> ChunkReport:
    """Write a chunk's outputs and then its record (invariant 2)."""
    started = time.perf_counter()
    outputs = store.write_chunk(chunk_id, arrays, tables)
    write_s = time.perf_counter() - started
    store.complete(chunk_id, chunk_id, outputs, seconds={"read": read_s, "compute": compute_s, "write": write_s})
    return ChunkReport(chunk_id, slices, read_s, compute_s, write_s)

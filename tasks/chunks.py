"""Chunks of a stage: which are left, how one is divided, and how one is finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy.typing as npt
import pandas as pd

from rfss_core.store import Chunk, StageStore
from tasks.isolation import SET_ASIDE, Probe, Refusal, was_set_aside
from tasks.phases import Phases
from tasks.run import ChunkReport


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Unit = TypeVar("Unit", bound=_HasId)


@dataclass(frozen=True)
class ChunkUnit:
    """A chunk of whole cases as a unit of work that can be divided (:class:`tasks.isolation.Divisible`)."""

    chunk: Chunk
    probe: Probe | None = field(default=None, kw_only=True)
    """The part to try without writing anything; None: do the chunk."""
    set_aside: tuple[Refusal, ...] = field(default=(), kw_only=True)
    """Cases that the work fails on."""

    @property
    def id(self) -> str:
        """The chunk's id."""
        return self.chunk.id

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Cases of the chunk, or of the part that is tried."""
        return self.chunk.case_ids if self.probe is None else self.probe.case_ids

    @property
    def slicewise(self) -> bool:
        """Runs of a case's slices can be tried."""
        return True

    @property
    def rows(self) -> tuple[int, int | None]:
        """First slice of each case and the one after the last; None: to the end."""
        return (0, None) if self.probe is None or self.probe.rows is None else self.probe.rows

    def probing(self, probe: Probe) -> Self:
        """Return the unit that only tries a part."""
        return replace(self, probe=probe)

    def without(self, refusals: tuple[Refusal, ...]) -> Self:
        """Return the unit that sets these cases aside."""
        return replace(self, set_aside=refusals)

    @property
    def refusals(self) -> dict[str, Refusal]:
        """Why cases are set aside, by case id."""
        return {refusal.case_id: refusal for refusal in self.set_aside}


@dataclass(frozen=True)
class Survey(Generic[Unit]):
    """What the records say about a stage."""

    todo: list[Unit]
    """Units without a trusted record."""
    set_aside: list[str]
    """Ids of finished units that set a case aside because the work failed on it."""


def survey(store: StageStore, units: Iterable[Unit], *, again: bool = False) -> Survey[Unit]:
    """Look at the records of a stage. A chunk's id is the digest of its input.

    Args:
        store: of the stage.
        units: all of them.
        again: do units again that set a case aside.
    """
    units = list(units)
    # By id whether a case was set aside; the records themselves, thousands of them, are not kept.
    known = {record.chunk: was_set_aside(record) for record in store.trusted_many({unit.id: unit.id for unit in units})}
    found: Survey[Unit] = Survey([], [])
    for unit in units:
        if unit.id not in known or (again and known[unit.id]):
            found.todo.append(unit)
        elif known[unit.id]:
            found.set_aside.append(unit.id)
    return found


def pending(store: StageStore, units: Iterable[Unit], *, again: bool = False) -> list[Unit]:
    """Return what is left to do; see :func:`survey`."""
    return survey(store, units, again=again).todo


def finish_chunk(
    store: StageStore,
    chunk_id: str,
    slices: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    tables: Mapping[str, pd.DataFrame] | None = None,
    *,
    phases: Phases | None = None,
    set_aside: Iterable[Refusal] = (),
) -> ChunkReport:
    """Write a chunk's outputs and then its record (invariant 2).

    Args:
        store: of the stage.
        chunk_id: the chunk's id.
        slices: that were worked on.
        arrays: see :meth:`StageStore.write_chunk`.
        tables: see :meth:`StageStore.write_chunk`.
        phases: the chunk's clock.
        set_aside: cases that the work failed on; the record names them.
    """
    clock = phases or Phases()
    with clock.writing():
        outputs: dict[str, str] = {}
        if arrays or tables:
            outputs = store.write_chunk(chunk_id, arrays, tables)
        else:
            # Nothing to keep but the record: no folder, and none of the syncs that one costs.
            store.remove(chunk_id)
    names = [refusal.case_id for refusal in set_aside]
    detail = {SET_ASIDE: names} if names else None
    store.complete(chunk_id, chunk_id, outputs, seconds=clock.seconds(), detail=detail)
    return ChunkReport(chunk_id, slices, clock.read_s, clock.compute_s, clock.write_s)

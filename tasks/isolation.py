"""Isolation: which cases of a failed chunk, and which of their slices, are to blame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar, runtime_checkable

from rfss_core.errors import (
    CaseError,
    ExecutionError,
    InputError,
    ModelError,
    RfssError,
    ShortOfMemoryError,
    StoreError,
    SupportError,
    WorkerDiedError,
)
from rfss_core.store import Record
from tasks.retry import describe, is_transient, reason_of

Part = TypeVar("Part")

SET_ASIDE = "set_aside"
"""Key of a completion record's detail: ids of the cases that the stage's work failed on."""
WORK_FAILED = ("killed_worker", "out_of_memory", "unexpected_error")
"""Reasons of a quarantine that say more about the attempt than about the input."""
SLICES_NAMED = 5


@dataclass(frozen=True)
class Refusal:
    """A case that a stage's work fails on."""

    case_id: str
    reason: str
    message: str

    @property
    def error(self) -> CaseError:
        """The refusal as what quarantine records."""
        return CaseError(self.message, reason=self.reason)


@dataclass(frozen=True)
class Probe:
    """Part of a chunk that is tried; nothing is written."""

    case_ids: tuple[str, ...]
    rows: tuple[int, int] | None = None
    """First slice and the one after the last, of the only case. None: all."""


@runtime_checkable
class Divisible(Protocol):
    """A unit of work that can be done in parts: a chunk of whole cases."""

    @property
    def id(self) -> str:
        """Digest of the unit's input; the same whatever is set aside."""
        ...

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The unit's cases."""
        ...

    @property
    def slicewise(self) -> bool:
        """Whether a case can be tried in runs of slices."""
        ...

    def probing(self, probe: Probe) -> Self:
        """Return the unit as one that only tries a part of itself."""
        ...

    def without(self, refusals: tuple[Refusal, ...]) -> Self:
        """Return the unit as one that sets these cases aside and does the others."""
        ...


def is_blamable(error: BaseException) -> bool:
    """Return whether an error may be a case's own fault.

    Storage, network, settings, weights, a package that is missing: these fail a case only by accident of its turn.
    """
    if isinstance(error, CaseError | WorkerDiedError | ShortOfMemoryError):
        return True
    if isinstance(error, StoreError | InputError | ModelError | SupportError | ExecutionError | ImportError):
        return False
    return isinstance(error, RfssError) or not (isinstance(error, OSError) or is_transient(error))


def find_culprits(
    parts: Sequence[Part], error: BaseException, fails: Callable[[Sequence[Part]], BaseException | None]
) -> list[tuple[Part, BaseException]]:
    """Halve what fails until single parts are left (Zeller and Hildebrandt's delta debugging, without joint causes).

    Takes about 2 c log2(n / c) trials for c culprits among n parts.

    Args:
        parts: fail together.
        error: with this.
        fails: tries some of them, in order, and returns what was raised.

    Returns:
        Each part that fails on its own, with its error; none where parts fail in company only.
    """
    if len(parts) == 1:
        return [(parts[0], error)]
    middle = len(parts) // 2
    found: list[tuple[Part, BaseException]] = []
    for half in (parts[:middle], parts[middle:]):
        if (own := fails(half)) is not None:
            found += find_culprits(half, own, fails)
    return found


def isolate(
    unit: Divisible,
    error: BaseException,
    fails: Callable[[Divisible, bool], BaseException | None],
    depth: Callable[[str], int],
) -> tuple[Refusal, ...]:
    """Find the cases, and where the stage works by slices the slices, that a failed unit fails on.

    Args:
        unit: failed as a whole.
        error: with this.
        fails: tries a part and returns what was raised; raises what is no case's fault. Told whether to make sure: a
            group that is blamed by accident clears itself in the trials of its halves, a single case cannot.
        depth: number of slices of a case.

    Returns:
        One refusal a culprit, in the order of the unit's cases; none where no case fails alone.
    """

    def cases_fail(part: Sequence[str]) -> BaseException | None:
        return fails(unit.probing(Probe(tuple(part))), len(part) == 1)

    found = find_culprits(unit.case_ids, error, cases_fail)
    return tuple(
        Refusal(case_id, reason_of(own), describe(own) + _where(unit, case_id, own, fails, depth))
        for case_id, own in found
    )


def _where(
    unit: Divisible,
    case_id: str,
    error: BaseException,
    fails: Callable[[Divisible, bool], BaseException | None],
    depth: Callable[[str], int],
) -> str:
    if not unit.slicewise or (slices := depth(case_id)) < 2:
        return ""

    def rows_fail(rows: Sequence[int]) -> BaseException | None:
        return fails(unit.probing(Probe((case_id,), (rows[0], rows[-1] + 1))), False)

    found = [row for row, _ in find_culprits(range(slices), error, rows_fail)]
    if not found:
        return ""
    listed = ", ".join(str(row) for row in found[:SLICES_NAMED]) + (", ..." if len(found) > SLICES_NAMED else "")
    return f" [slice {listed} of {slices}, counted from 0]"


def was_set_aside(record: Record) -> bool:
    """Return whether work failed on a case that the record vouches for: a larger machine may do better."""
    return bool(record.detail.get(SET_ASIDE))

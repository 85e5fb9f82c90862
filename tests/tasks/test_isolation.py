"""Isolation: exactly the culprits of a chunk, whatever their number and place; retries; what is transient."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import (
    CaseError,
    CorruptStoreError,
    DownloadError,
    ModelError,
    PixelError,
    ShortOfMemoryError,
    StorageFullError,
    StoreError,
    WorkerDiedError,
)
from rfss_core.store import Chunk
from tasks.chunks import ChunkUnit
from tasks.isolation import Refusal, find_culprits, is_blamable, isolate
from tasks.retry import Retry, RetryPolicy, call_with_retries, is_transient, reason_of


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_every_culprit_and_nobody_else_is_found(drawn: tuple[int, set[int]]) -> None:
    n, guilty = drawn
    trials: list[Sequence[int]] = []

    def fails(part: Sequence[int]) -> BaseException | None:
        trials.append(part)
        found = guilty.intersection(part)
        return ValueError(str(min(found))) if found else None

    found = find_culprits(range(n), ValueError("all"), fails)
    assert [part for part, _ in found] == sorted(guilty)
    assert all(str(error) == str(part) for part, error in found) or n == 1
    assert len(trials) <= 2 * len(guilty) * math.ceil(math.log2(max(2, n)))


def test_parts_that_fail_only_in_company_are_not_blamed() -> None:
    assert find_culprits(range(8), ValueError(), lambda part: ValueError() if {2, 6} <= set(part) else None) == []


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1))
def test_a_refusal_names_case_and_slices(guilty: set[tuple[int, int]]) -> None:
    cases = tuple(f"case-{number}" for number in range(5))

    def fails(unit: object, sure: bool) -> BaseException | None:
        assert isinstance(unit, ChunkUnit)
        first, last = unit.rows
        hit = {z for case, z in guilty if cases[case] in unit.case_ids and first <= z < (last or 7)}
        return PixelError("NaN") if hit else None

    refusals = isolate(ChunkUnit(Chunk("c", cases, 35)), PixelError("NaN"), fails, lambda case_id: 7)
    assert [refusal.case_id for refusal in refusals] == sorted({cases[case] for case, _ in guilty})
    for refusal in refusals:
        slices = sorted(z for case, z in guilty if cases[case] == refusal.case_id)
        listed = ", ".join(map(str, slices[:5])) + (", ..." if len(slices) > 5 else "")
        assert refusal == Refusal(refusal.case_id, "bad_pixels", f"NaN [slice {listed} of 7, counted from 0]")


def test_storage_settings_and_weights_are_no_cases_fault() -> None:
    for error in (StoreError("x"), CorruptStoreError("x"), ModelError("x"), OSError("x"), ImportError("x")):
        assert not is_blamable(error)
    for error in (CaseError("x"), WorkerDiedError("x"), ShortOfMemoryError("x"), ValueError("x"), RuntimeError("x")):
        assert is_blamable(error)


def caused(cause: BaseException) -> StoreError:
    error = StoreError("reading failed")
    error.__cause__ = cause
    return error


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.EIO, "x"), True),
        (OSError("the node went away"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (caused(OSError(errno.ESTALE, "x")), True),
        (caused(ClientError("SlowDown")), True),
        (caused(ClientError("AccessDenied")), False),
        (caused(FileNotFoundError("x")), False),
        (StoreError("there is no array; run its stage again"), False),
        (OSError(errno.EROFS, "x"), False),
        (StorageFullError("x"), False),
        (CorruptStoreError("x"), False),
        (DownloadError("x"), False),
        (PermissionError("x"), False),
        (MemoryError(), False),
        (ValueError("x"), False),
    ],
)
def test_what_is_transient(error: BaseException, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_transient_error_is_tried_again_after_growing_pauses() -> None:
    failures, pauses, noted = [ConnectionError("a"), TimeoutError("b"), OSError("c")], [], []

    def work() -> str:
        if failures:
            raise failures.pop(0)
        return "done"

    policy = RetryPolicy(attempts=4, first_s=1.0, limit_s=3.0)
    retries: list[Retry] = noted
    assert call_with_retries(work, policy, retries, pauses.append) == "done"
    assert [retry.attempt for retry in retries] == [1, 2, 3]
    for pause, longest in zip(pauses, (1.0, 2.0, 3.0), strict=True):
        assert longest / 2 <= pause <= longest


def test_lasting_errors_and_used_up_attempts_are_raised() -> None:
    def work() -> None:
        calls.append(1)
        raise error

    for error, expected in ((ValueError("x"), 1), (ConnectionError("x"), 3)):
        calls: list[int] = []
        with pytest.raises(type(error)):
            call_with_retries(work, RetryPolicy(attempts=3), [], lambda pause: None)
        assert len(calls) == expected


def test_reasons_of_errors() -> None:
    import torch

    assert reason_of(PixelError("x")) == "bad_pixels"
    assert reason_of(MemoryError()) == reason_of(torch.OutOfMemoryError()) == "out_of_memory"
    assert reason_of(KeyError("x")) == "unexpected_error"

"""Phases: one chunk reads while another computes; each device has one user."""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import time
from pathlib import Path

import pytest

from rfss_core.settings import ExecutionSettings
from tasks.execution import InlineExecutor
from tasks.overlap import overlapped
from tasks.phases import Phases, before_computing

spans: list[tuple[str, float, float]] = []


def chunk(number: int) -> int:
    phases = Phases()
    for name, phase in (("read", phases.reading), ("compute", phases.computing), ("write", phases.writing)):
        with phase():
            started = time.perf_counter()
            time.sleep(0.02)
            spans.append((name, started, time.perf_counter()))
    assert all(seconds >= 0.02 for seconds in phases.seconds().values())
    return number


def test_phases_of_different_chunks_overlap_and_two_never_compute_at_once() -> None:
    spans.clear()
    assert [value for _, value in InlineExecutor(ExecutionSettings()).map(chunk, list(range(10)))] == list(range(10))
    reads, computes = ([span[1:] for span in spans if span[0] == name] for name in ("read", "compute"))
    assert any(read[0] < compute[1] and compute[0] < read[1] for read in reads for compute in computes)
    for name in ("read", "compute"):
        times = sorted((start, end) for span, start, end in spans if span == name)
        assert all(end <= following for (_, end), (following, _) in itertools.pairwise(times))


def test_the_next_chunk_is_let_in_once_when_this_one_computes() -> None:
    let_in: list[int] = []
    with before_computing(lambda: let_in.append(1)):
        phases = Phases()
        with phases.reading():
            pass
        assert not let_in
        for _ in range(3):
            with phases.computing():
                assert let_in == [1]
    with Phases().computing():
        assert let_in == [1]


def test_who_stops_reading_stops_the_work() -> None:
    begun: list[int] = []

    def endless(number: int) -> None:
        begun.append(number)
        if number:
            while True:
                time.sleep(0.001)

    results = overlapped(endless, range(100))
    assert next(results)[0] == 0
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())
    assert len(begun) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rfss-chunk")]


def test_an_import_ends_before_its_thread_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that an exception from outside cuts short can keep its module's lock for ever."""
    (tmp_path / "slow_to_import.py").write_text(
        "import time\n"
        "deadline = time.monotonic() + 0.5\n"
        "while time.monotonic() < deadline:\n    time.sleep(0.001)\n"
        "whole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importing = threading.Event()

    def call(number: int) -> None:
        if number:
            importing.set()
            importlib.import_module("slow_to_import")
            while True:
                time.sleep(0.001)

    results = overlapped(call, range(3))
    assert next(results)[0] == 0
    assert importing.wait(10)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())
    assert sys.modules["slow_to_import"].whole


@pytest.mark.timeout(60)
def test_a_thread_that_is_being_started_is_not_stopped_in_the_place_of_its_parent() -> None:
    """Until it first runs it has its parent's identity; dead before it began, it was waited for for ever."""

    def call(number: int) -> None:
        while number:
            started = threading.Thread(target=int)
            started.start()
            started.join()
            time.sleep(0.0005)

    for _ in range(60):
        results = overlapped(call, range(3))
        assert next(results)[0] == 0
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt())

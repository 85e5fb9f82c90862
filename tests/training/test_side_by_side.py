"""The loop with which benchmarks train networks side by side."""

from __future__ import annotations

import operator
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from side_by_side import side_by_side


def test_results_come_as_they_end_and_a_failure_costs_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, float] = {}

    def finished(name: str, value: float) -> str:
        found[name] = value
        return f"{name} is {value}"

    jobs = {"half": (1, 2), "nothing": (1, 0), "third": (1, 3)}
    failed = side_by_side(operator.truediv, jobs, processes=2, seconds=60, finished=finished)
    assert failed == 1
    assert found == {"half": 0.5, "third": pytest.approx(1 / 3)}
    said = capsys.readouterr()
    assert "failed: nothing: division by zero" in said.err
    assert "half is 0.5" in said.out


def test_what_is_not_done_in_time_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    begin, ended = time.monotonic(), list[int]()
    failed = side_by_side(
        time.sleep, {0: (0,), 1: (600,), 2: (0,)}, processes=1, seconds=15, finished=lambda key, _: ended.append(key)
    )
    assert (failed, ended) == (0, [0])
    assert time.monotonic() - begin < 120
    assert "time is up" in capsys.readouterr().err

"""Leases: one run a workspace; a dead one is found out without looking at any wall clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from rfss_core.errors import WorkspaceBusyError, WorkspaceLostError
from rfss_core.store import Files
from rfss_core.store import lease as leases
from rfss_core.store.lease import life, read_lease, refuse_busy, take

STALE_S = 0.6

HOLDER = """
import sys, time
from rfss_core.store import Files
from rfss_core.store.lease import take
with take(Files(sys.argv[1]), 30.0, "rfss label there"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process table can be asked, as between two machines that share a storage."""
    monkeypatch.setattr(leases, "_machine", lambda: "")


def test_one_run_at_a_time_and_the_next_when_it_ends(root_url: str) -> None:
    files = Files(root_url)
    assert life(files) is None
    refuse_busy(files)
    with take(files, 30.0, "rfss label first") as lease:
        lease.check()
        for refused in (lambda: take(files, 30.0).__enter__(), lambda: refuse_busy(files)):
            with pytest.raises(WorkspaceBusyError, match=rf"'rfss label first' on .* process {os.getpid()}, since 2"):
                refused()
        assert (life(files) or ())[1] == "alive"
    assert (life(files) or ())[1] == "ended"
    with pytest.raises(KeyboardInterrupt), take(files, 30.0, "second"):
        raise KeyboardInterrupt
    found = read_lease(files)
    assert found is not None
    assert (found[0], found[1].command, found[1].ended) == (2, "second", "stopped")
    assert files.names("lease") == ["00000002.json"]
    # As Prefect raises it on SIGTERM: no Exception.
    for raised, ended in ((ToldToStop(), "stopped"), (OSError("full"), "failed")):
        with pytest.raises(type(raised)), take(files, 30.0, "third"):
            raise raised
        third = read_lease(files)
        assert third is not None
        assert third[1].ended == ended


class ToldToStop(BaseException):
    """What ends a run from outside."""


def test_a_killed_owner_of_this_machine_is_known_dead_at_once(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WorkspaceBusyError, match=f"'rfss label there' on .* process {holder.pid}"),
            take(files, 30.0),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (life(files) or ())[1] == "dead"
    began = time.monotonic()
    with take(files, 30.0, "next") as lease:
        lease.check()
    assert time.monotonic() - began < 5


def test_a_left_behind_lease_of_a_pid_that_lives_again_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path)
    with take(files, 30.0), monkeypatch.context() as patch:
        patch.setattr(leases, "_started", lambda pid: 1.0)
        patch.setattr(os, "getpid", lambda: -1)
        assert (life(files) or ())[1] == "dead"


@pytest.mark.parametrize("jump_s", [-7200, 7200])
def test_clocks_that_jump_change_nothing(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    files = Files(tmp_path)
    wall = time.time
    with take(files, STALE_S, "owner") as lease:
        monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
        for path in (tmp_path / "lease").iterdir():
            os.utime(path, (wall() + jump_s, wall() + jump_s))
        with pytest.raises(WorkspaceBusyError), take(files, STALE_S):
            pass
        lease.check()


def test_a_heartbeat_that_stands_still_gives_the_workspace_to_another(
    root_url: str, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(root_url)
    told: list[str] = []
    with ExitStack() as stack:
        first = stack.enter_context(take(files, STALE_S, "first"))
        # What SIGSTOP, a frozen machine or a lost network does: nothing is renewed for a while.
        gate = threading.Event()
        renew = first._renew
        monkeypatch.setattr(first, "_renew", lambda: (gate.wait(), renew()))
        time.sleep(STALE_S / 3)
        second = stack.enter_context(take(files, STALE_S, "second", waiting=told.append))
        assert len(told) == 1
        assert "'first' on" in told[0]
        gate.set()
        with pytest.raises(WorkspaceLostError, match=r"was taken over by 'second' on .* this run stops"):
            first.check() or time.sleep(STALE_S) or first.check()
        second.check()
        assert files.names("lease") == ["00000002.json"]
    assert files.names("lease") == ["00000002.json"]
    found = read_lease(files)
    assert found is not None
    assert (found[1].command, found[1].ended) == ("second", "finished")


def test_of_many_at_once_one_wins(root_url: str) -> None:
    files = Files(root_url)
    start = threading.Barrier(8)

    def compete(number: int) -> str:
        start.wait()
        try:
            with take(Files(root_url), 30.0, f"run {number}"):
                inside.append(number)
                assert len(inside) == 1
                start.wait()
                inside.remove(number)
        except WorkspaceBusyError:
            start.wait()
            return "busy"
        return "held"

    inside: list[int] = []
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(compete, range(8))) == ["busy"] * 7 + ["held"]
    assert len(files.names("lease")) == 1


@pytest.mark.parametrize("slow_at", ["read_many", "create"])
def test_two_runs_that_come_and_go_between_two_looks_leave_nothing_in_doubt(
    root_url: str, monkeypatch: pytest.MonkeyPatch, slow_at: str
) -> None:
    """Whoever is slow finds its number free again, because the second run cleared the first's away."""
    files, slow = Files(root_url), Files(root_url)
    with take(files, 30.0, "first"):
        pass
    quick = getattr(slow, slow_at)
    held = ExitStack()

    def late(*arguments: object) -> object:
        monkeypatch.setattr(slow, slow_at, quick)
        with take(files, 30.0, "second"):
            pass
        held.enter_context(take(files, 30.0, "third"))
        return quick(*arguments)

    monkeypatch.setattr(slow, slow_at, late)
    with held, pytest.raises(WorkspaceBusyError, match="'third' on"), take(slow, 30.0, "late"):
        pass
    assert files.names("lease") == ["00000003.json"]


def test_a_damaged_lease_is_watched_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path)
    files.write_bytes("lease/00000007.json", b"{")
    monkeypatch.setattr(leases, "_NOBODY", leases.replace(leases._NOBODY, stale_s=STALE_S))
    with take(files, STALE_S, "next"):
        assert files.names("lease") == ["00000008.json"]


def test_a_clock_that_is_set_moves_no_lease(tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path)
    real = time.time
    with take(files, STALE_S, "rfss label here") as lease:
        for leap in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda leap=leap: real() + leap)
            # Longer than a heartbeat may stand still.
            time.sleep(2 * STALE_S)
            lease.check()
            assert (life(files) or ())[1] == "alive"
            with pytest.raises(WorkspaceBusyError):
                take(files, STALE_S).__enter__()
    monkeypatch.undo()
    assert (life(files) or ())[1] == "ended"

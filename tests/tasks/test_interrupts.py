"""Ctrl-C while a cluster starts: nothing is left half, and nothing is swallowed."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import resource_tracker
from types import FrameType

import psutil
import pytest
from distributed import SpecCluster
from distributed.core import Status

from rfss_core.settings import ExecutionSettings
from tasks.execution import open_executor
from tasks.interrupts import put_off


class ToldToStop(BaseException):
    """As Prefect raises it on SIGTERM."""


@pytest.fixture(autouse=True)
def handlers():
    """As in a command; dask_jobqueue, where another test imports it, makes Ctrl-C a silent exit."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise ToldToStop

    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, stop))
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def put_off_until_told(reached: list[str], *numbers: int) -> None:
    with put_off():
        for number in numbers:
            os.kill(os.getpid(), number)
            reached.append(signal.Signals(number).name)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, ToldToStop)])
def test_what_stops_the_driver_waits_for_the_end_of_the_block(number: int, raised: type[BaseException]) -> None:
    reached: list[str] = []
    handler = signal.getsignal(number)
    with pytest.raises(raised):
        put_off_until_told(reached, number)
    assert reached == [signal.Signals(number).name]
    assert signal.getsignal(number) is handler


def test_who_asks_twice_is_heard_at_once() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        put_off_until_told(reached, signal.SIGTERM, signal.SIGINT)
    assert reached == ["SIGTERM"]


def test_other_threads_have_nothing_to_put_off() -> None:
    def elsewhere() -> None:
        with put_off():
            ran.append(True)

    ran: list[bool] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert ran


def test_ctrl_c_while_workers_start_leaves_no_cluster_and_no_process() -> None:
    # Serves the whole process, and stays.
    resource_tracker.ensure_running()
    before = set(psutil.Process().children(recursive=True))
    running = {cluster for cluster in SpecCluster._instances if cluster.status != Status.closed}
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), open_executor(ExecutionSettings(executor="local", workers=2)):
        pytest.fail("the cluster had started before it was interrupted")
    assert {cluster for cluster in SpecCluster._instances if cluster.status != Status.closed} == running
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive

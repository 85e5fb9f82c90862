"""Executors: every item once, failures beside results, bounded flight; on a real Dask cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import cloudpickle
import pytest
from dask.distributed import Future
from pydantic import ValidationError

from rfss_core.errors import CaseError, ExecutionError, NoDeviceError, SettingsError, WorkerDiedError
from rfss_core.settings import ExecutionSettings
from tasks import flight
from tasks.execution import open_executor
from tasks.executor import Executor
from tasks.worker import Failure, WorkPlugin

# Workers cannot import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def square(value: int) -> int:
    if value == 13:
        raise CaseError("thirteen cannot be squared; leave it out", reason="unlucky")
    return value * value


def die(value: int) -> int:
    if value == 2:
        os._exit(1)
    return value


@pytest.fixture(scope="module", params=["inline", "local"])
def executor(request: pytest.FixtureRequest):
    with open_executor(ExecutionSettings(executor=request.param, workers=2)) as opened:
        yield opened


def test_every_item_comes_back_once_with_its_result_or_its_failure(executor: Executor) -> None:
    outcomes = dict(executor.map(square, list(range(40))))
    assert sorted(outcomes) == list(range(40))
    failure = outcomes.pop(13)
    assert outcomes == {value: value * value for value in range(40) if value != 13}
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, CaseError)
    assert failure.error.reason == "unlucky"


def test_no_items_is_no_work(executor: Executor) -> None:
    assert list(executor.map(square, [])) == []


def test_threads_reach_the_workers(executor: Executor) -> None:
    cores = len(os.sched_getaffinity(0))
    share = cores if executor.name == "inline" else max(1, cores // 2)
    for stage, expected in (("segment", (share, share)), ("ingest", (1, 1))):
        counts = {count for _, count in executor.map(library_threads, [0, 1, 2, 3], stage=stage)}
        assert counts == {expected}


def library_threads(_: int) -> tuple[int, int]:
    import faiss
    import torch

    return torch.get_num_threads(), faiss.omp_get_max_threads()


@pytest.fixture(scope="module")
def one_worker():
    with open_executor(ExecutionSettings(executor="local", workers=1, deaths=1)) as opened:
        yield opened


def interrupted(value: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return os.getpid()


def test_ctrl_c_is_the_drivers_alone(one_worker: Executor) -> None:
    """A terminal sends it to the workers, too; one that has died comes back and is as deaf."""
    pids = {pid for _, pid in one_worker.map(interrupted, [0, 1])}
    assert len(pids) == 1
    assert isinstance(dict(one_worker.map(die, [2]))[2], Failure)
    again = {pid for _, pid in one_worker.map(interrupted, [0, 1])}
    assert len(again) == 1
    assert again != pids
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_dying_worker_is_a_failure_of_its_item_alone(one_worker: Executor) -> None:
    noted: list[tuple[int, str]] = []
    outcomes = dict(one_worker.map(die, [1, 2, 3], noted=lambda item, retry: noted.append((item, retry.reason))))
    failure = outcomes[2]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, WorkerDiedError)
    assert "ended 1 times while it ran alone" in str(failure.error)
    assert (outcomes[1], outcomes[3]) == (1, 3)
    assert noted.count((2, "killed_worker")) == 2


class DiesWhenTold(WorkPlugin):
    """Ends the first worker that it comes to, while the scheduler waits for its answer."""

    marker: ClassVar[Path]

    def __init__(self, name: str, payload: bytes) -> None:
        super().__init__(name, payload)
        self.path = self.marker

    def setup(self, worker: object) -> None:
        if not self.path.exists():
            self.path.touch()
            os._exit(1)
        super().setup(worker)


def test_a_worker_that_dies_while_it_is_told_of_the_work_ends_nothing(
    one_worker: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WorkPlugin", DiesWhenTold)
    DiesWhenTold.marker = tmp_path / "died"
    assert dict(one_worker.map(square, [1, 2, 3])) == {1: 1, 2: 4, 3: 9}
    assert DiesWhenTold.marker.exists()


def ends_afterwards(value: int) -> int:
    if value == 2:
        threading.Timer(0.2, os._exit, (1,)).start()
    return value


@pytest.mark.slow
@pytest.mark.invariant
def test_a_worker_that_dies_before_its_result_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status is then neither finished nor an error, and its end is a death like any other."""
    settle = flight._Flight._settle

    def late(self: flight._Flight, future: Future[object]) -> Iterator[tuple[object, object]]:
        if 1 in self._running[future.key]:
            time.sleep(0.6)
        return settle(self, future)

    monkeypatch.setattr(flight._Flight, "_settle", late)
    with open_executor(ExecutionSettings(executor="local", workers=1)) as executor:
        outcomes = dict(executor.map(ends_afterwards, [1, 2, 3]))
    assert (outcomes[1], outcomes[3]) == (1, 3)
    assert isinstance(outcomes[2], Failure)
    assert isinstance(outcomes[2].error, WorkerDiedError)


def test_a_function_that_workers_cannot_import_fails_its_items_and_nothing_else(one_worker: Executor) -> None:
    [(_, outcome)] = one_worker.map(Unloadable(), [1])
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, ModuleNotFoundError)
    assert dict(one_worker.map(square, [3])) == {3: 9}


class Unloadable:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("no_such_module_anywhere",)


def test_an_address_without_a_scheduler_says_so() -> None:
    with (
        pytest.raises(ExecutionError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        open_executor(ExecutionSettings(executor="tcp://127.0.0.1:9")),
    ):
        pass


def test_transient_errors_are_tried_again_where_the_function_runs(tmp_path: Path) -> None:
    with open_executor(ExecutionSettings(backoff_s=0.01)) as opened:
        noted: list[str] = []
        results = dict(opened.map(flaky, [tmp_path / "a"], noted=lambda item, retry: noted.append(retry.message)))
    assert results == {tmp_path / "a": 3}
    assert noted == ["ConnectionError: away"] * 2


def flaky(path: Path) -> int:
    attempts = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(attempts))
    if attempts < 3:
        raise ConnectionError("away")
    return attempts


def test_an_existing_scheduler_is_used() -> None:
    from dask.distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        open_executor(ExecutionSettings(executor=cluster.scheduler_address)) as executor,
    ):
        assert dict(executor.map(square, [1, 2])) == {1: 1, 2: 4}


def test_a_cluster_class_starts_workers_for_work_and_lets_them_go() -> None:
    arguments = {"n_workers": 0, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    cluster = {"class": "distributed.LocalCluster", "arguments": arguments, "maximum": 2}
    settings = ExecutionSettings.model_validate({"cluster": cluster})
    assert settings.executor == "cluster"
    with open_executor(settings) as executor:
        assert dict(executor.map(square, list(range(12)))) == {value: value * value for value in range(12)}
        assert executor.workers <= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its local jobs leave their pipes to the garbage collector
def test_job_queues_of_dask_jobqueue_serve() -> None:
    pytest.importorskip("dask_jobqueue")
    arguments = {"cores": 1, "memory": "1GB", "processes": 1, "interface": "lo", "log_directory": None}
    cluster = {"class": "dask_jobqueue.local.LocalCluster", "arguments": arguments, "wait_s": 240}
    with open_executor(ExecutionSettings.model_validate({"cluster": cluster, "workers": 1})) as executor:
        assert dict(executor.map(square, list(range(5)))) == {value: value * value for value in range(5)}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.Cluster", "cannot be imported.*rfss\\[slurm\\]"),
        ("distributed.NoSuchCluster", "cannot be imported"),
        ("distributed.Client", "is no Dask cluster"),
    ],
)
def test_a_class_that_is_no_cluster_is_refused(path: str, message: str) -> None:
    settings = ExecutionSettings.model_validate({"cluster": {"class": path}})
    with pytest.raises(SettingsError, match=message), open_executor(settings):
        pass


def test_ctrl_c_stays_ours_when_a_cluster_class_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    from tasks.clusters import cluster_class

    for module in [name for name in sys.modules if name.startswith("dask_jobqueue")]:
        monkeypatch.delitem(sys.modules, module)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cluster_class("dask_jobqueue.SLURMCluster").__name__ == "SLURMCluster"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_gpu_workers_see_one_device_each() -> None:
    # No CUDA is needed to see what each worker is given.
    from dask.distributed import Client

    from tasks.clusters import gpu_cluster

    with gpu_cluster(["0", "GPU-abc"]) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        seen = client.run(lambda dask_worker: (visible_devices(), dask_worker.state.nthreads))
        resources = client.run_on_scheduler(
            lambda dask_scheduler: [dict(worker.resources) for worker in dask_scheduler.workers.values()]
        )
    assert sorted(seen.values()) == [("0", 1), ("GPU-abc", 1)]
    assert resources == [{"GPU": 1}] * 2


def visible_devices() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_without_a_gpu_the_executor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with (
        pytest.raises(NoDeviceError, match="torch finds none here"),
        open_executor(ExecutionSettings(executor="gpus")),
    ):
        pass


@pytest.mark.parametrize(
    "given",
    [
        {"executor": "cluster"},
        {"executor": "slurm"},
        {"cluster": {"class": "no dots"}},
        {"cluster": {"class": "a.B", "minimum": 3, "maximum": 2}},
        {"cluster": {"class": "a.B", "minimum": 3}},
    ],
)
def test_settings_that_describe_no_executor_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExecutionSettings.model_validate(given)

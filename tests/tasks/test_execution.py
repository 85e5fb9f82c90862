"""Executors: every item once, failures beside results, bounded flight; on a real Dask cluster."""

from __future__ import annotations

import os
import sys

import cloudpickle
import pytest

from rfss_core.errors import CaseError, ExecutionError, NoDeviceError, SettingsError, WorkerDiedError
from rfss_core.settings import ExecutionSettings
from tasks.execution import Executor, Failure, open_executor

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
    for stage, expected in (("segment", (share, share)), ("embed", (share, 1)), ("ingest", (1, 1))):
        counts = {count for _, count in executor.map(library_threads, [0, 1, 2, 3], stage=stage)}
        assert counts == {expected}


def library_threads(_: int) -> tuple[int, int]:
    import faiss
    import torch

    return torch.get_num_threads(), faiss.omp_get_max_threads()


def test_a_dying_worker_is_a_failure_of_its_item_alone() -> None:
    with open_executor(ExecutionSettings(executor="local", workers=1)) as executor:
        outcomes = dict(executor.map(die, [1, 2, 3]))
    failure = outcomes[2]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, WorkerDiedError)
    assert "ended 2 times while it ran alone" in str(failure.error)
    assert (outcomes[1], outcomes[3]) == (1, 3)


def test_an_address_without_a_scheduler_says_so() -> None:
    with (
        pytest.raises(ExecutionError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"),
        open_executor(ExecutionSettings(executor="tcp://127.0.0.1:9")),
    ):
        pass


def test_a_function_that_workers_cannot_import_fails_its_items_and_nothing_else() -> None:
    with open_executor(ExecutionSettings(executor="local", workers=1)) as executor:
        [(_, outcome)] = executor.map(Unloadable(), [1])
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error, ModuleNotFoundError)
        assert dict(executor.map(square, [3])) == {3: 9}


class Unloadable:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("no_such_module_anywhere",)


def test_an_existing_scheduler_is_used() -> None:
    from dask.distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, host="127.0.0.1", dashboard_address=None, silence_logs=50) as cluster,
        open_executor(ExecutionSettings(executor=cluster.scheduler_address)) as executor,
    ):
        assert dict(executor.map(square, [1, 2])) == {1: 1, 2: 4}

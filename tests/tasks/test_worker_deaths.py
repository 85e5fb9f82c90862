"""Workers that die: of a case, which is found, and of nothing that any chunk did, for which none is blamed."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from cohorts import settings_for, write_cohort
from distributed.chaos import KillWorker

from rfss_core.events import ChunkRetried, Event, EventStream
from rfss_core.settings import ExecutionSettings
from rfss_core.store import Chunk, Workspace
from tasks.chunks import ChunkUnit, finish_chunk
from tasks.embed import embed
from tasks.execution import open_executor
from tasks.executor import Executor
from tasks.flight import DaskExecutor
from tasks.ingest import ingest
from tasks.run import ChunkReport, Run
from tasks.worker import Failure

cloudpickle.register_pickle_by_value(sys.modules[__name__])

STAGE, KEY = "deadly", "0" * 16


@dataclass(frozen=True)
class WholeCases(ChunkUnit):
    @property
    def slicewise(self) -> bool:
        return False


def work(workspace: str, deadly: frozenset[str], unit: WholeCases) -> ChunkReport:
    for case_id in unit.case_ids:
        if case_id in deadly and case_id not in unit.refusals:
            os._exit(1)
    if unit.probe is not None:
        return ChunkReport(unit.id, 0)
    arrays = {case_id: np.arange(3) for case_id in unit.case_ids if case_id not in unit.refusals}
    store = Workspace.open(workspace).stage(STAGE, KEY)
    return finish_chunk(store, unit.id, 3, arrays, set_aside=unit.set_aside)


@pytest.mark.slow
@pytest.mark.invariant
@pytest.mark.timeout(900)
def test_cases_that_end_their_worker_are_set_aside_and_no_other(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=2, labelled=1)
    deadly = frozenset({"c1-2", "c3-0", "c3-3"})
    units = [WholeCases(Chunk(f"c{n}", tuple(f"c{n}-{i}" for i in range(4)), 12)) for n in range(6)]
    settings = settings_for(cohort, tmp_path / "w", execution={"executor": "local", "workers": 2, "deaths": 1})
    workspace = Workspace.open(settings.workspace)
    seen: list[Event] = []
    with open_executor(settings.execution) as executor:
        run = Run(settings, workspace, executor, EventStream([seen.append]))
        with run.stage(STAGE) as stage:
            reports = stage.run_chunks(partial(work, workspace.url, deadly), units, isolating=True)
    assert sorted(report.chunk for report in reports) == [unit.id for unit in units]
    store = workspace.stage(STAGE, KEY)
    records = store.records()
    assert {case for record in records.values() for case in record.detail.get("set_aside", ())} == deadly
    for unit in units:
        kept = {path.split("/")[-1] for path in records[unit.id].outputs}
        assert kept == set(unit.case_ids) - deadly
    isolated = {event.chunk for event in seen if isinstance(event, ChunkRetried) and event.reason == "isolated"}
    assert isolated == {"c1", "c3"}


@pytest.mark.slow
@pytest.mark.invariant
@pytest.mark.timeout(600)
def test_a_cluster_ends_no_worker_of_its_own_accord() -> None:
    """Whatever shares the cluster with workers that die would be blamed for such an end."""
    with open_executor(ExecutionSettings(executor="local", workers=1, deaths=1)) as executor:
        assert isinstance(executor, DaskExecutor)
        workers = executor.client.cluster.workers
        before = dict(workers)
        # Dask looks a quarter of a minute after each death whether its place is empty, as it is again at another one.
        until = time.monotonic() + 45
        while time.monotonic() < until:
            assert isinstance(dict(executor.map(end_the_worker, [0]))[0], Failure)
            assert workers == before
        # One that gave up is replaced, though.
        given_up = workers[0]
        asyncio.run_coroutine_threadsafe(given_up.close(), executor.client.loop.asyncio_loop).result(60)
        assert dict(executor.map(abs, [-1])) == {-1: 1}
        assert workers[0] is not given_up


def end_the_worker(_: int) -> None:
    os._exit(1)


class KillForAWhile(KillWorker):
    """Kills each worker that starts before a moment, so that every run ends."""

    def __init__(self, delay: float, mode: Any, until: float) -> None:
        super().__init__(delay=delay, mode=mode)
        self.until = until

    async def setup(self, worker: Any) -> None:
        if time.time() < self.until:
            await super().setup(worker)


def embed_all(run: Run) -> dict[str, np.ndarray]:
    manifest = ingest.fn(run)
    embeddings = embed.fn(run, manifest)
    assert not embeddings.refused
    assert manifest.quarantine.empty
    store = run.workspace.stage("embed", embeddings.key)
    return {case: store.read_array(chunk, case) for case, chunk in embeddings.chunk_of_case.items()}


def workers_seen(executor: Executor) -> set[str]:
    assert isinstance(executor, DaskExecutor)
    return set(executor.client.run_on_scheduler(addresses_ever))


def addresses_ever(dask_scheduler: Any) -> list[str]:
    return [event["worker"] for _, event in dask_scheduler.get_events("all") if event.get("action") == "remove-worker"]


@pytest.mark.slow
@pytest.mark.invariant
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_workers_killed_at_random_change_nothing(mode: str, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=24, labelled=12, depth=6)
    runs = {}
    for name, executor_name in (("undisturbed", "inline"), ("killed", "local")):
        settings = settings_for(cohort, tmp_path / name, execution={"executor": executor_name, "workers": 2})
        with open_executor(settings.execution) as executor:
            run = Run(settings, Workspace.open(settings.workspace), executor, EventStream([]))
            if isinstance(executor, DaskExecutor):
                plugin = KillForAWhile(3.0, mode, until=time.time() + 30)
                executor.client.register_plugin(plugin, name="kill")
            runs[name] = embed_all(run)
            if isinstance(executor, DaskExecutor):
                assert workers_seen(executor), "nobody was killed"
    assert set(runs["killed"]) == set(runs["undisturbed"])
    assert all(np.array_equal(runs["killed"][case], runs["undisturbed"][case]) for case in runs["undisturbed"])

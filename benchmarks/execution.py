"""What the execution machinery costs, beside the same flow written naively.

    python benchmarks/execution.py                  # some minutes on two cores
    python benchmarks/execution.py --chunks 2000

1. Chunks of no work through the whole machinery: a Prefect flow and task, two Dask workers, bounded flight, completion
   records, events to the log, the UI and ``state.json``. Then the same flow again, which finds all records.
2. Chunks of one second: what is lost beside the work itself. The second is slept, so that a busy machine does not
   count as overhead.
3. The embedded DINOv2 over slices on one worker and on two, beside plain processes without any of this: what the
   machine itself gives for a second process is the most that can be had.
4. The flow of 1 as its naive version: one Prefect task a chunk.

Ends with one line of key figures; exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tasks  # noqa: F401 - sets the environment's defaults before Prefect is imported

# isort: split
import cloudpickle
import numpy as np
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from flows.server import ensure_prefect_server
from rfss_core.events import EventStream
from rfss_core.settings import EmbeddingSettings, ExecutionSettings, LabelSettings
from rfss_core.store import Workspace
from tasks.chunks import finish_chunk, pending
from tasks.execution import open_executor
from tasks.executor import Executor
from tasks.models import embedder_for
from tasks.phases import Phases
from tasks.progress import PrefectProgress, log_event
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.status import RunState
from tasks.threads import Threads, configure_threads

# Workers cannot import a script.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TARGET_RATE = 100.0
"""Chunks of no work a second."""
TARGET_MEMORY = 1.0
"""GiB of the driver, its Dask scheduler included."""
TARGET_RESUME = 10.0
"""Seconds."""
TARGET_OVERHEAD = 0.03
"""Of chunks of one second."""
TARGET_SCALING = 0.85
"""Of what plain processes gain from a second process."""
WORKERS = 2
STAGE = "nothing"
SLICES = 32


@dataclass(frozen=True)
class Unit:
    """A chunk of the benchmark."""

    id: str


def units(count: int) -> list[Unit]:
    """Return so many chunks."""
    return [Unit(f"chunk-{number:06d}") for number in range(count)]


def do_nothing(workspace: str, unit: Unit) -> ChunkReport:
    """Write a record and nothing else."""
    store = Workspace.open(workspace).stage(STAGE, "0" * 16)
    return finish_chunk(store, unit.id, 0, {}, phases=Phases())


def work_a_second(workspace: str, unit: Unit) -> ChunkReport:
    """Work for a second and write a little."""
    phases = Phases()
    with phases.computing():
        time.sleep(1.0)
    store = Workspace.open(workspace).stage("seconds", "0" * 16)
    return finish_chunk(store, unit.id, 0, {"numbers": np.arange(1000)}, phases=phases)


def embed_noise(unit: Unit) -> ChunkReport:
    """Embed a chunk of slices with the embedded DINOv2."""
    phases = Phases()
    with phases.reading():
        slices = np.random.default_rng(len(unit.id)).random((SLICES, 96, 96), dtype=np.float32)
    with phases.computing():
        embedder_for(EmbeddingSettings(), "tiny", "cpu").embed(list(slices))
    return ChunkReport(unit.id, SLICES, phases.read_s, phases.compute_s)


@task(name="nothing", **STAGE_TASK)
def run_stage(run: Run, function: Callable[[Unit], ChunkReport], todo: list[Unit], done: int) -> None:
    """Take chunks through the run's executor."""
    with run.stage(STAGE) as stage:
        stage.run_chunks(function, todo, done=done)


def machinery(workspace: str, count: int, executor: Executor) -> tuple[int, float]:
    """Do what has no record yet, as a Prefect flow; return how much that was and the seconds it took."""

    @flow(name="machinery", persist_result=False)
    def of_one_stage() -> int:
        opened = Workspace.open(workspace)
        settings = LabelSettings(images="none", labels="none", workspace=workspace)
        run = Run(settings, opened, executor, EventStream([log_event, PrefectProgress()]))
        state = RunState.begin(run)
        run.events.subscribe(state)
        todo = pending(opened.stage(STAGE, "0" * 16), units(count))
        run_stage(run, partial(do_nothing, workspace), todo, count - len(todo))
        state.end("finished")
        return len(todo)

    started = time.perf_counter()
    done = of_one_stage()
    return done, time.perf_counter() - started


@task(persist_result=False)
def naive_chunk(workspace: str, unit: Unit) -> str:
    """Do one chunk as a Prefect task."""
    return do_nothing(workspace, unit).chunk


@flow(name="naive", validate_parameters=False, persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
def naive(workspace: str, count: int) -> int:
    """Submit one Prefect task a chunk."""
    return len([future.result() for future in naive_chunk.map([workspace] * count, units(count))])


def naive_flow() -> tuple[str, Callable[[str, int], int]]:
    """Return the naive flow and its task runner's name: prefect-dask's where it is installed."""
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        return "ThreadPoolTaskRunner (prefect-dask is not installed)", naive
    arguments = {"n_workers": WORKERS, "threads_per_worker": 1}
    return "DaskTaskRunner", naive.with_options(task_runner=DaskTaskRunner(cluster_kwargs=arguments))


def map_seconds(executor: Executor, function: Callable[[Unit], ChunkReport], todo: list[Unit]) -> float:
    """Return the seconds that a map takes; raises what a chunk raised."""
    started = time.perf_counter()
    for _, outcome in executor.map(function, todo, stage="embed"):
        assert isinstance(outcome, ChunkReport), outcome
    return time.perf_counter() - started


def plain_process(count: int, barrier: object, seconds: object) -> None:
    """Embed chunks without any machinery."""
    configure_threads(Threads(compute=1))
    embed_noise(Unit("warm"))
    barrier.wait()  # type: ignore[attr-defined]
    started = time.perf_counter()
    for unit in units(count):
        embed_noise(unit)
    seconds.put(time.perf_counter() - started)  # type: ignore[attr-defined]


def plain_seconds(processes: int, count: int) -> float:
    """Return the seconds of so many chunks in so many plain processes."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(processes), context.Queue()
    running = [
        context.Process(target=plain_process, args=(count // processes, barrier, seconds)) for _ in range(processes)
    ]
    for process in running:
        process.start()
    found = max(seconds.get(timeout=600) for _ in running)
    for process in running:
        process.join()
    return float(found)


def worker_seconds(workers: int, count: int) -> float:
    """Return the seconds of so many chunks on so many workers, the models loaded before."""
    with open_executor(ExecutionSettings(executor="local", workers=workers, threads=1)) as executor:
        map_seconds(executor, embed_noise, units(2 * workers))
        return map_seconds(executor, embed_noise, units(count))


def scaling_and_ceiling(count: int, rounds: int) -> tuple[float, float]:
    """Return what a second worker gains, and what a second plain process does.

    The four are measured in turn, several times, and the shortest of each counts: what else the machine does comes and
    goes.
    """
    least: dict[str, float] = {}
    for _ in range(rounds):
        for name, measure in (("worker", worker_seconds), ("plain", plain_seconds)):
            for number in (1, 2):
                key = f"{name} {number}"
                least[key] = min(measure(number, count), least.get(key, float("inf")))
    return least["worker 1"] / least["worker 2"], least["plain 1"] / least["plain 2"]


def peak_gib() -> float:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000, help="chunks of no work")
    parser.add_argument("--seconds", type=int, default=40, help="chunks of one second")
    parser.add_argument("--embedded", type=int, default=48, help="chunks of embedding")
    parser.add_argument("--rounds", type=int, default=2, help="times that embedding is measured")
    parser.add_argument("--naive", type=int, default=200, help="chunks of the naive flow")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and return the exit code."""
    given = parse()
    # Prefect's logging shows what Dask tells its own developers.
    for library in ("distributed", "prefect"):
        logging.getLogger(library).setLevel(logging.ERROR)
    ensure_prefect_server()
    rows: list[tuple[str, str, str, bool | None]] = []

    def row(what: str, found: str, target: str = "", met: bool | None = None) -> None:
        rows.append((what, found, target, met))
        print(f"  {what:<52} {found:>22}  {target}", flush=True)

    with tempfile.TemporaryDirectory(prefix="rfss-execution-") as folder:
        place = str(Path(folder) / "workspace")
        with open_executor(ExecutionSettings(executor="local", workers=WORKERS, threads=1)) as two:
            map_seconds(two, embed_noise, units(2 * WORKERS))
            done, seconds = machinery(place, given.chunks, two)
            rate, memory = done / seconds, peak_gib()
            row(f"{done} chunks of no work", f"{rate:.0f} chunks/s", f">= {TARGET_RATE:.0f}", rate >= TARGET_RATE)
            row("memory of the driver", f"{memory:.2f} GiB", f"< {TARGET_MEMORY:g}", memory < TARGET_MEMORY)
            left, resume = machinery(place, given.chunks, two)
            assert left == 0, f"{left} chunks were done twice"
            row("the same again, finished", f"{resume:.1f} s", f"< {TARGET_RESUME:g}", resume < TARGET_RESUME)
            worked = map_seconds(two, partial(work_a_second, place), units(given.seconds))
            overhead = worked * WORKERS / given.seconds - 1
            row(
                f"{given.seconds} chunks of 1 s, {WORKERS} workers: overhead",
                f"{100 * overhead:.1f} %",
                f"< {100 * TARGET_OVERHEAD:.0f} %",
                overhead < TARGET_OVERHEAD,
            )
        scaling, ceiling = scaling_and_ceiling(given.embedded, given.rounds)
        row("embedding, 1 -> 2 workers", f"{scaling:.2f} times")
        row("the same in plain processes", f"{ceiling:.2f} times")
        share = scaling / ceiling
        row("share of the machine's own gain", f"{share:.2f}", f">= {TARGET_SCALING:g}", share >= TARGET_SCALING)
        name, flow_of = naive_flow()
        started = time.perf_counter()
        flow_of(str(Path(folder) / "naive"), given.naive)
        naive_rate = given.naive / (time.perf_counter() - started)
        row(f"naive flow, {given.naive} chunks, {name}", f"{naive_rate:.1f} chunks/s")
    missed = [what for what, _, _, met in rows if met is False]
    print(
        f"execution: {rate:.0f} chunks/s ({rate / naive_rate:.1f} times naive), driver {memory:.2f} GiB, resume "
        f"{resume:.1f} s, overhead {100 * overhead:.1f} %, scaling {scaling:.2f} of {ceiling:.2f}"
        + (f"; MISSED: {', '.join(missed)}" if missed else "")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

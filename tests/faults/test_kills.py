"""``kill -9`` of the driver, of a worker, of the scheduler: the same command again ends in the same bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disturbed import (
    STAGES,
    Attempt,
    Cluster,
    Labelling,
    dask_cluster,
    draw_moments,
    survivors,
    timeline,
    workers_of,
)

from flows.cli import main
from tasks.status import read_status

KILLS = int(os.environ.get("RFSS_KILLS", "20"))
SEED = int(os.environ.get("RFSS_KILL_SEED", "0"))
PATIENCE_S = 30.0
"""What a killed command started must be gone after this long, on a busy machine."""


def labelling(phantoms: Path, workspace: Path, executor: str, *more: str) -> Labelling:
    options = ("--config", str(phantoms / "settings.yaml"), "--preset", "tiny", "--executor", executor, *more)
    prefect = workspace.parent / "prefect"
    return Labelling(phantoms, workspace, options, {"PREFECT_HOME": str(prefect), "PREFECT_API_URL": ""})


@pytest.mark.slow
@pytest.mark.invariant
@pytest.mark.timeout(1200)
def test_a_stopped_run_goes_on_and_leaves_no_process_behind(
    phantoms: Path, tmp_path: Path, prefect_server: str
) -> None:
    """Ctrl-C, then ``kill -9`` of the driver, then of a worker, and all that on the run that is left."""
    vote = ("--segmenter", "label-fusion")
    place = tmp_path / "w"

    alone = labelling(phantoms, place, "inline", *vote)
    alone.environment["PREFECT_API_URL"] = prefect_server
    attempt = alone.start()
    assert attempt.wait_until("ingest"), attempt.shown()
    family = attempt.family()
    attempt.interrupt()
    assert attempt.ended() == 130
    assert attempt.shown().count("stopped; start the same command again") == 1
    assert "Traceback" not in attempt.shown()
    assert survivors(family, PATIENCE_S) == []
    assert read_status(place).state == "stopped"
    kept = {path: path.stat().st_mtime_ns for path in (place / "records").rglob("*.json")}

    disturbed = labelling(phantoms, place, "local", *vote)
    attempt = disturbed.start()
    assert attempt.wait_until("embed"), attempt.shown()
    family = attempt.family()
    assert any("flows.server_process" in " ".join(process.cmdline()) for process in family)
    assert len(workers_of(family)) == 2
    attempt.kill()
    assert survivors(family, PATIENCE_S) == []
    assert not (place / "summary.json").exists()

    disturbed.environment["PREFECT_API_URL"] = prefect_server
    attempt = disturbed.start()
    assert attempt.wait_until("segment"), attempt.shown()
    workers_of(attempt.family())[0].kill()
    assert attempt.ended() == 0, attempt.shown()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished work was done again"

    undisturbed = labelling(phantoms, tmp_path / "undisturbed", "inline", *vote)
    with pytest.raises(SystemExit) as end:
        main(undisturbed.arguments())
    assert not end.value.code
    assert disturbed.outcome() == undisturbed.outcome()
    # The soak draws its moments from these.
    assert [stage.name for stage in read_status(undisturbed.workspace).stages] == list(STAGES[1:])


def kill_driver(attempt: Attempt, _: Cluster | None, random: np.random.Generator) -> None:
    family = attempt.family()
    attempt.kill()
    assert survivors(family, PATIENCE_S) == []


def interrupt(attempt: Attempt, _: Cluster | None, random: np.random.Generator) -> None:
    family = attempt.family()
    attempt.interrupt()
    attempt.ended()
    assert survivors(family, PATIENCE_S) == []


def kill_worker(attempt: Attempt, cluster: Cluster | None, random: np.random.Generator) -> None:
    workers = workers_of(attempt.family() if cluster is None else cluster.processes())
    if workers:
        workers[int(random.integers(len(workers)))].kill()


def kill_scheduler(_: Attempt, cluster: Cluster | None, random: np.random.Generator) -> None:
    assert cluster is not None
    cluster.parts["scheduler"].kill()


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("victims", "external"),
    [
        pytest.param((kill_driver, kill_worker, interrupt), False, id="local"),
        pytest.param((kill_scheduler, kill_worker, kill_driver), True, id="cluster"),
    ],
)
def test_kills_at_random_moments_change_nothing(
    phantoms: Path,
    tmp_path: Path,
    victims: tuple[Callable[[Attempt, Cluster | None, np.random.Generator], None], ...],
    external: bool,
) -> None:
    random = np.random.default_rng(SEED)
    if not external:
        soak(phantoms, tmp_path, "local", victims, None, random)
        return
    with dask_cluster(tmp_path / "cluster") as cluster:
        soak(phantoms, tmp_path, cluster.address, victims, cluster, random)


def soak(
    phantoms: Path,
    folder: Path,
    executor: str,
    victims: tuple[Callable[[Attempt, Cluster | None, np.random.Generator], None], ...],
    cluster: Cluster | None,
    random: np.random.Generator,
) -> None:
    """Kill, start again, kill later; a run that ends begins anew elsewhere, until so many kills have struck."""
    undisturbed = labelling(phantoms, folder / "undisturbed", executor)
    seconds = timeline(undisturbed.start())
    expected = undisturbed.outcome()
    struck: list[str] = []
    rounds = 0
    while len(struck) < KILLS:
        rounds += 1
        disturbed = labelling(phantoms, folder / f"round{rounds}", executor)
        for moment in draw_moments(seconds, min(5, KILLS - len(struck)), random):
            if cluster is not None:
                cluster.ensure()
            attempt = disturbed.start()
            if moment.come(attempt):
                victim = victims[len(struck) % len(victims)]
                victim(attempt, cluster, random)
                struck.append(f"{victim.__name__} {moment.stage} +{moment.seconds:.1f} s")
            # A driver that outlives the kill ends by itself: done, or with one line that says what to do.
            code = attempt.ended()
            assert code in (0, 1, 130, -signal.SIGKILL), (struck, attempt.shown())
            assert "Traceback" not in attempt.shown(), attempt.shown()
            if code == 0:
                break
        if cluster is not None:
            cluster.ensure()
        assert disturbed.finish() == expected, struck
        print(f"{len(struck)} kills, {rounds} rounds: {'; '.join(struck)}")

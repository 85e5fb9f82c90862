"""``kill -9`` of the driver, of a worker, of the scheduler: the same command again ends in the same bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disturbed import (
    Attempt,
    Cluster,
    Labelling,
    dask_cluster,
    draw_moments,
    survivors,
    timeline,
    workers_of,
)

KILLS = int(os.environ.get("RFSS_KILLS", "20"))
SEED = int(os.environ.get("RFSS_KILL_SEED", "0"))
PATIENCE_S = 15.0
"""What a killed command started must be gone after this long, on a busy machine."""


def labelling(phantoms: Path, workspace: Path, executor: str, *more: str) -> Labelling:
    options = ("--config", str(phantoms / "settings.yaml"), "--preset", "tiny", "--executor", executor, *more)
    prefect = workspace.parent / "prefect"
    return Labelling(phantoms, workspace, options, {"PREFECT_HOME": str(prefect), "PREFECT_API_URL": ""})


def test_a_killed_driver_leaves_no_process_and_a_killed_worker_no_trace(phantoms: Path, tmp_path: Path) -> None:
    vote = ("--segmenter", "label-fusion")
    disturbed = labelling(phantoms, tmp_path / "w", "local", *vote)
    attempt = disturbed.start()
    assert attempt.wait_until("embed"), attempt.shown()
    family = attempt.family()
    assert any("flows.server_process" in " ".join(process.cmdline()) for process in family)
    assert len(workers_of(family)) == 2
    attempt.kill()
    assert survivors(family, PATIENCE_S) == []
    assert not (tmp_path / "w" / "summary.json").exists()

    attempt = disturbed.start()
    assert attempt.wait_until("segment"), attempt.shown()
    workers_of(attempt.family())[0].kill()
    assert attempt.ended() == 0, attempt.shown()
    undisturbed = labelling(phantoms, tmp_path / "undisturbed", "inline", *vote)
    assert disturbed.outcome() == undisturbed.finish()


def kill_driver(attempt: Attempt, _: Cluster | None, random: np.random.Generator) -> None:
    family = attempt.family()
    attempt.kill()
    assert survivors(family, PATIENCE_S) == []


def kill_worker(attempt: Attempt, cluster: Cluster | None, random: np.random.Generator) -> None:
    workers = workers_of(attempt.family() if cluster is None else cluster.processes())
    if workers:
        workers[int(random.integers(len(workers)))].kill()


def kill_scheduler(_: Attempt, cluster: Cluster | None, random: np.random.Generator) -> None:
    assert cluster is not None
    cluster.parts["scheduler"].kill()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("victims", "external"),
    [
        pytest.param((kill_driver, kill_worker), False, id="local"),
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
            assert code in (0, 1, -signal.SIGKILL), (struck, attempt.shown())
            assert "Traceback" not in attempt.shown(), attempt.shown()
            if code == 0:
                break
        if cluster is not None:
            cluster.ensure()
        assert disturbed.finish() == expected, struck
        print(f"{len(struck)} kills, {rounds} rounds: {'; '.join(struck)}")

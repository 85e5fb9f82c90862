"""deployments/slurm on a real Slurm of one node: the job script requeues itself, SLURMCluster brings the workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cohorts import write_cohort
from service import clean_environment, until
from slurm import Slurm, slurm

from tasks.status import read_status
from tasks.summary import read_summary

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments" / "slurm"
SETTINGS = {
    "held_out": 0.5,
    "k": 3,
    "quality": {"min_dice": 0.0, "bootstrap": 200},
    "segmentation": {"segmenter": "label-fusion"},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as found:
        yield found


def submit(cluster: Slurm, folder: Path, *arguments: str) -> str:
    environment = {"RFSS_VENV": str(Path(sys.executable).parents[1]), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ("--parsable", "--cpus-per-task=1", "--mem=4G", "--time=01:00:00", str(FOLDER / "label.sbatch"))
    return cluster.call("sbatch", *options, *arguments, cwd=folder, **environment)


def stage_of(workspace: Path) -> str:
    if not (workspace / "state.json").exists():
        return ""
    return " ".join(stage.name for stage in read_status(str(workspace)).stages)


def test_a_job_that_is_told_to_stop_requeues_itself_and_goes_on(cluster: Slurm, tmp_path: Path) -> None:
    write_cohort(tmp_path, patients=16, labelled=12)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    places = ("images", "--labels", "labels", "--workspace", "w", "--config", "settings.yaml")
    number = submit(cluster, tmp_path, *places)
    log = tmp_path / f"rfss-{number}.log"
    until(lambda: "embed" in stage_of(tmp_path / "w"), "the run embeds", 600)
    # What `--signal=B:TERM@180` does before the time limit.
    cluster.call("scancel", "--batch", "--signal=TERM", number)
    until(lambda: cluster.job(number)["Restarts"] == "1", "the job is requeued", 120)
    assert read_status(str(tmp_path / "w")).state == "stopped"
    until(lambda: cluster.job(number)["JobState"] == "PENDING", "the job waits", 60)
    # Slurm lets a requeued job wait for two minutes.
    cluster.call("scontrol", "update", f"jobid={number}", "starttime=now")
    until(lambda: cluster.job(number)["JobState"] in ("COMPLETED", "FAILED"), "the job ends", 900)
    said = log.read_text()
    assert cluster.job(number)["ExitCode"] == "0:0", said
    assert f"job {number} on" in said
    assert "start 2" in said
    assert "requeued: it goes on where it stopped" in said
    assert read_summary(str(tmp_path / "w")).dataset.status == "accepted"


def test_a_job_that_cannot_work_and_one_that_is_cancelled_are_not_requeued(cluster: Slurm, tmp_path: Path) -> None:
    number = submit(cluster, tmp_path, "nowhere", "--labels", "nowhere", "--workspace", "w")
    until(lambda: cluster.job(number)["JobState"] == "FAILED", "the job fails", 300)
    assert cluster.job(number)["ExitCode"] == "2:0"
    assert cluster.job(number)["Restarts"] == "0"
    assert "another start would not help" in (tmp_path / f"rfss-{number}.log").read_text()
    write_cohort(tmp_path, patients=16, labelled=12)
    number = submit(cluster, tmp_path, "images", "--labels", "labels", "--workspace", "w")
    until(lambda: cluster.job(number)["JobState"] == "RUNNING", "the job runs", 60)
    until(lambda: "start 1" in (tmp_path / f"rfss-{number}.log").read_text(), "the script runs", 60)
    cluster.call("scancel", number)
    until(lambda: cluster.job(number)["JobState"] == "CANCELLED", "the job is cancelled", 120)
    assert cluster.job(number)["Restarts"] == "0"


def test_workers_are_jobs_and_speak_tls(cluster: Slurm, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    write_cohort(tmp_path, patients=16, labelled=12)
    given: dict[str, Any] = yaml.safe_load((FOLDER / "settings.yaml").read_text(encoding="utf-8"))
    arguments = given["execution"]["cluster"]["arguments"]
    # This machine's size and network; all else as it is shipped.
    arguments.update(cores=1, memory="4GB", interface="lo", shared_temp_directory=str(tmp_path))
    given["execution"]["cluster"]["maximum"] = 1
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(given | SETTINGS))
    command = [sys.executable, "-m", "flows.cli", "label", "images", "--labels", "labels", "--workspace", "w"]
    environment = {**clean_environment(), **cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--config", "settings.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_summary(str(tmp_path / "w")).dataset.status == "accepted"
    told = "".join(path.read_text() for path in (tmp_path / "rfss-workers").glob("*.err"))
    assert "Start worker at:" in told
    assert "tls://" in told
    assert "tcp://" not in told
    # Keys of the run are gone with it.
    assert not list(tmp_path.glob(".dask-jobqueue*"))
    until(lambda: not cluster.call("squeue", "--noheader"), "its jobs end", 120)

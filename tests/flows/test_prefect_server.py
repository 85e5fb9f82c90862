"""Prefect servers that ask for a password, are away, or go away; work pools that no worker polls; the nightly clock."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from cohorts import write_cohort
from prefect.client.orchestration import get_client
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)
from service import clean_environment, dying_server, free_port, prefect_server, until

from flows import doctor
from flows.cli import main
from flows.server import PrefectServer
from flows.service.attendance import unattended
from flows.service.automations import FILE, set_up
from flows.service.deployments import Nightly, deployments
from tasks.status import read_status

PASSWORD = "admin:a long enough password"
AWAY = "http://127.0.0.1:9/api"


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def arguments(cohort: Path, workspace: Path) -> list[str]:
    places = ("label", cohort / "images", "--labels", cohort / "labels", "--workspace", workspace)
    short = ("--k", 3, "--held-out", 0.5, "--min-dice", 0, "--segmenter", "label-fusion")
    return [str(argument) for argument in (*places, *short)]


def label(cohort: Path, workspace: Path) -> int:
    return rfss(*arguments(cohort, workspace))


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that asks for a password."""
    database = tmp_path_factory.mktemp("locked") / "prefect.db"
    with temporary_settings(
        {
            PREFECT_SERVER_API_AUTH_STRING: PASSWORD,
            PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}",
        }
    ):
        server = PrefectServer()
    try:
        yield server.wait(180)
    finally:
        server.stop()


def test_wrong_credentials_are_one_line_that_names_the_setting(
    locked: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, said in ((None, "asks for a password (401)"), ("admin:wrong", "refuses what PREFECT_API_AUTH_STRING")):
        with temporary_settings({PREFECT_API_URL: locked, PREFECT_API_AUTH_STRING: given}):
            for command in (lambda: label(cohort, tmp_path / "w"), lambda: rfss("automations")):
                assert command() == 2
                error = capsys.readouterr().err
                assert error.count("\n") == 1
                assert f"the Prefect server at '{locked}' {said}" in error
                assert "set PREFECT_API_AUTH_STRING to its user:password" in error
    assert rfss("serve", "--home", tmp_path / "home", "--port", urlsplit(locked).port) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the Prefect server at '{locked}' asks for a password; give --secure" in error
    with temporary_settings({PREFECT_API_URL: locked, PREFECT_API_AUTH_STRING: PASSWORD}):
        assert rfss("automations") == 0
    assert "set up 'RFSS: zombie run is crashed'" in capsys.readouterr().out


def test_a_server_that_is_away_at_the_start_is_one_line(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings({PREFECT_API_URL: AWAY}):
        assert label(cohort, tmp_path / "w") == 1
        assert rfss("automations") == 1
    for error in capsys.readouterr().err.splitlines():
        assert f"the Prefect server at '{AWAY}' does not answer" in error
        assert "rfss serve" in error
    assert not (tmp_path / "w" / "manifest").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_server_that_goes_away_in_the_middle_and_comes_back(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=8, labelled=6)
    workspace, log = tmp_path / "w", tmp_path / "w" / "run.log"
    port = free_port()
    with prefect_server(tmp_path / "home", port) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            # The shipped one, but for its patience.
            file = sooner(tmp_path)
            assert "set up 'sooner'" in set_up(file=file)
        environment = {**clean_environment(), "PREFECT_API_URL": url, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
        command = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments(cohort, workspace)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(lambda: log.is_file() and "segment: " in log.read_text(), "stage segment begins")
    with command:
        until(lambda: "run finished after" in log.read_text(), "all is labelled")
        # Prefect's own patience would take five minutes.
        said, complained = command.communicate(timeout=150)
    assert command.returncode == 0, complained
    assert "accepted" in said
    assert complained == ""
    assert read_status(str(workspace)).state == "finished"
    assert len(list((workspace / "pseudo_labels").glob("*.nii.gz"))) == 2
    for line in ("the run goes on without its UI", "does not know that this run ended; all is recorded"):
        assert line in log.read_text()
    with prefect_server(tmp_path / "home", port) as url, temporary_settings({PREFECT_API_URL: url}):
        # All that the server knows is a run that fell silent; whether it noted that it was waiting is up to the moment.
        set_up(file=file)
        until(lambda: state_of_the_run() == "CRASHED", "the run that the server lost sight of is marked")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", ["evaluate", "select", "study"])
def test_a_server_that_goes_away_takes_no_result_with_it(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    places = ["--images", cohort / "images", "--labels", cohort / "labels"]
    if command == "study":
        file = tmp_path / "mine.yaml"
        vote = {"name": "vote", "segmenter": "label-fusion", "k": 3}
        file.write_text(yaml.safe_dump({"methods": [vote], "seeds": [0], "support_slices": 6, "test_patients": 2}))
        given, result = ["study", file, *places, "--out", tmp_path / "o"], tmp_path / "o" / "mine" / "study.json"
    elif command == "evaluate":
        result = tmp_path / "figures.json"
        given = ["evaluate", *places, "--segmenter", "label-fusion", "--k", 3, "--out", result]
    else:
        given, result = ["select", cohort / "images", "--n", 4, "--out", tmp_path / "o"], tmp_path / "o"
    with dying_server(tmp_path / "home", "embed", monkeypatch) as killed:
        assert rfss(*given) == 0
        assert killed()
    assert result.exists()


def state_of_the_run() -> str:
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs()
    assert run.state is not None
    return str(run.state.type.value)


def sooner(folder: Path) -> Path:
    """Write the automation for zombies with a patience of 45 seconds, one heartbeat and a half."""
    document = yaml.safe_load(FILE.read_text())
    [zombie] = [each for each in document["automations"] if "zombie" in each["name"]]
    zombie["name"], zombie["trigger"]["within"] = "sooner", 45
    (folder / "sooner.yaml").write_text(yaml.safe_dump({"automations": [zombie]}))
    return folder / "sooner.yaml"


def test_runs_that_nobody_would_start_are_said() -> None:
    [nightly] = [each for each in deployments(Nightly()) if each.name == "nightly"]
    nightly.name, nightly.work_pool_name = "idle", "idle-pool"
    nightly.concurrency_limit = None
    with get_client(sync_client=True) as client:
        client._client.post("/work_pools/", json={"name": "idle-pool", "type": "process"}).raise_for_status()
        nightly.apply()
        said = "work pool 'idle-pool', so their runs wait; start `prefect worker start --pool idle-pool`"
        assert any(said in line for line in unattended(client))
        assert said in doctor._prefect()
        # What a worker does every few seconds.
        client._client.post("/work_pools/idle-pool/workers/heartbeat", json={"name": "w"}).raise_for_status()
        client._client.post("/work_pools/idle-pool/get_scheduled_flow_runs", json={}).raise_for_status()
        until(lambda: "idle-pool" not in str(unattended(client)), "the server has noticed its worker", 60)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_the_nightly_run_comes_once_a_night_over_the_change_to_summer_time(zone: str) -> None:
    planned = Nightly("30 2 * * *", zone).schedule(active=True)
    served = CronSchedule(cron=planned.cron, timezone=planned.timezone)
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    runs = asyncio.run(served.get_dates(366, start=start))
    nights = [run.date() for run in runs]
    assert nights == [nights[0] + dt.timedelta(days=number) for number in range(366)]
    # Where the clock leaps over half past two, the run comes just before or after the leap.
    assert {(run.hour, run.minute) for run in runs} <= {(2, 30), (1, 30), (3, 30), (3, 0), (2, 0)}
    assert sum((run.hour, run.minute) != (2, 30) for run in runs) <= 1

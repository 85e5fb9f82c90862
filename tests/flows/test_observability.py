"""A real run that is watched: its log in JSON, and its metrics over HTTP and in a file, against ``summary.json``."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cohorts import write_cohort
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prometheus_client.parser import text_string_to_metric_families

from flows.cli import main
from rfss_core.store import Workspace
from rfss_core.store.manifest import Manifest
from tasks.summary import Summary, read_summary

PATIENT = "sub-77_Smith^John"
RUN = ("--segmenter", "label-fusion", "--k", "3", "--held-out", "0.5", "--min-dice", "0", "--dataset", "ellipses")


class Scraper(logging.Handler):
    """Finds the address in the log and scrapes it when stage segment has ended: while the run lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.address, self.text = "", ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("metrics at "):
            self.address = message.removeprefix("metrics at ")
        if getattr(record, "event", "") == "stage_finished" and getattr(record, "stage", "") == "segment":
            self.text = httpx.get(self.address, trust_env=False).text


@dataclass(frozen=True)
class WatchedRun:
    cohort: Path
    workspace: Path
    lines: list[dict[str, Any]]
    out: str
    during: dict[tuple[str, frozenset[tuple[str, str]]], float]
    after: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @property
    def summary(self) -> Summary:
        return read_summary(str(self.workspace))


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name.removeprefix("rfss_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset({"flow": "label-dataset", "dataset": "ellipses", **labels}.items())]


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> WatchedRun:
    place = tmp_path_factory.mktemp("watched")
    cohort = write_cohort(place / "ward 7", patients=14, labelled=11)
    (cohort / "images" / f"{PATIENT}.nii.gz").write_bytes(b"no image")
    workspace = place / "w"
    scraper = Scraper()
    logging.getLogger("rfss").addHandler(scraper)
    out, err = (place / "out").open("w+"), (place / "err").open("w+")
    try:
        with pytest.MonkeyPatch.context() as patch, out, err:
            patch.setenv("RFSS_METRICS_PORT", "0")
            patch.setenv("RFSS_METRICS_DIR", str(place / "metrics"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            places = (cohort / "images", "--labels", cohort / "labels", "--workspace", workspace)
            code = rfss("--log-format", "json", "--log-level", "debug", "label", *places, *RUN)
    finally:
        logging.getLogger("rfss").removeHandler(scraper)
    said = (place / "err").read_text()
    assert code == 0, said
    [kept] = (place / "metrics").glob("*.prom")
    lines = [json.loads(line) for line in said.splitlines()]
    during, after = samples(scraper.text), samples(kept.read_text())
    return WatchedRun(cohort, workspace, lines, (place / "out").read_text(), during, after)


def test_every_line_is_json_with_the_run_in_it(watched: WatchedRun) -> None:
    assert watched.out == "", "in JSON the log is all that there is"
    ours = [line for line in watched.lines if line["logger"] == "rfss" and line.get("event") != "said"]
    assert len({(line["run"], line["flow_run"]) for line in ours}) == 1
    kinds = Counter(line.get("event") for line in ours)
    assert kinds["run_started"] == kinds["run_ended"] == kinds["quality_measured"] == kinds["case_quarantined"] == 1
    assert kinds["stage_started"] == kinds["stage_finished"] == 8
    assert {line["stage"] for line in ours if line.get("event") == "chunk_finished"} >= {"ingest", "embed", "segment"}
    work = [line for line in ours if line["message"] == "begins"]
    assert work
    assert all(
        line["stage"] and line["chunk"] and line["case"] for line in work if line["stage"] in ("ingest", "embed")
    )
    [registered] = [line for line in ours if line.get("event") == "dataset_registered"]
    assert registered["mlflow_run"] == watched.summary.mlflow_run_id
    assert registered["fingerprint"] == watched.summary.fingerprint
    [measured] = [line for line in ours if line.get("event") == "quality_measured"]
    assert measured["dice"]["mean"] == watched.summary.held_out_dice["mean"].mean
    assert any("Held-out quality of" in line["message"] for line in watched.lines if line.get("event") == "said")
    assert any(line["logger"] == "prefect.flow_runs" for line in watched.lines)


def test_no_line_names_a_source_file(watched: WatchedRun) -> None:
    [aside] = [line for line in watched.lines if line.get("event") == "case_quarantined"]
    assert aside["case"][0].startswith("sub-77_Smith-John-")
    in_prefect = _prefects_lines(watched.lines[-1].get("flow_run") or aside["flow_run"])
    assert any(aside["case"][0] in line for line in in_prefect)
    assert not any(line.startswith("{") for line in in_prefect), "Prefect's UI shows text"
    log = (watched.workspace / "run.log").read_text()
    for said in (*(json.dumps(line) for line in watched.lines), *in_prefect, *log.splitlines()):
        assert str(watched.cohort / "images") + "/" not in said
        assert str(watched.cohort / "labels") + "/" not in said
        assert PATIENT not in said
    # Who may read the workspace finds out which file it was, and why.
    assert rfss("status", watched.workspace) == 0
    assert PATIENT in (watched.workspace / "state.json").read_text()


def _prefects_lines(flow_run: str) -> list[str]:
    with get_client(sync_client=True) as client:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run]))
        return [line.message for line in client.read_logs(wanted, limit=200)]


def test_metrics_are_served_while_the_run_lasts(watched: WatchedRun) -> None:
    assert of(watched.during, "run_running") == 1
    assert of(watched.during, "workers") == 1
    assert of(watched.during, "chunks_total", stage="ingest", outcome="done") == 15
    assert of(watched.during, "queue_chunks", stage="segment", state="left") == 0
    assert ("held_out_dice", frozenset()) not in watched.during


def test_metrics_equal_the_summary(watched: WatchedRun) -> None:
    summary, found = watched.summary, watched.after
    assert of(found, "run_running") == 0
    assert of(found, "run_ended", state="finished") == 1
    for name, interval in summary.held_out_dice.items():
        assert of(found, "held_out_dice", **{"class": name}) == interval.mean
        assert of(found, "held_out_dice_low", **{"class": name}) == interval.ci_low
    decisions = summary.decisions.model_dump()
    assert {name: of(found, "decided_cases", decision=name) for name in decisions} == decisions
    assert of(found, "predicted_dice_count") == sum(decisions.values())
    assert of(found, "gate_passed") == (summary.dataset.status == "accepted")
    assert of(found, "chunks_total", stage="segment", outcome="done") == summary.chunks
    assert of(found, "slices_total", stage="ingest") == summary.slices
    manifest = Manifest.read(Workspace.open(str(watched.workspace)).files)
    reasons = Counter(manifest.quarantine["reason"])
    assert sum(reasons.values()) == summary.cases.quarantined == 1
    assert {reason: of(found, "quarantined_cases_total", reason=reason) for reason in reasons} == reasons
    for stage, seconds in summary.seconds.items():
        if stage != "total":
            assert of(found, "stage_seconds", stage=stage) == pytest.approx(seconds)
    version = summary.dataset.version or ""
    assert of(found, "dataset_info", dataset_version=version, status=summary.dataset.status) == 1


def test_bad_input_is_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["label", tmp_path / "no", "--labels", "x", "--workspace", tmp_path / "w"], "does not exist"),
        (["label", "--bogus"], "--bogus"),
    ):
        assert rfss("--log-format", "json", *arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        [line] = [json.loads(line) for line in said.err.splitlines()]
        assert (line["level"], line["event"], line["code"]) == ("ERROR", "refused", 2)
        assert message in line["message"]
    assert rfss("label", "--bogus") == 2
    assert not capsys.readouterr().err.startswith("{"), "the next command is another one"


@pytest.mark.slow
def test_workers_lines_are_json_with_their_run_and_chunk(prefect_server: str, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=8, labelled=6)
    places = [str(cohort / "images"), "--labels", str(cohort / "labels"), "--workspace", str(tmp_path / "w")]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "label", *places, *RUN, "--executor", "local"],
        env={
            **os.environ,
            "PREFECT_API_URL": prefect_server,
            "RFSS_LOG_FORMAT": "json",
            "RFSS_LOG_LEVEL": "debug",
            "RFSS_LOG_FILE": str(tmp_path / "all.jsonl"),
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    workers = [line for line in lines if "worker" in line]
    assert {line["stage"] for line in workers} >= {"ingest", "embed", "segment"}
    assert all(line["chunk"] for line in workers)
    assert len({line["run"] for line in lines if line.get("event") in ("run_started", "chunk_finished")}) == 1
    assert {line["run"] for line in workers} == {line["run"] for line in lines if line.get("event") == "run_started"}
    kept = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert {line["event"] for line in kept if "event" in line} >= {"run_started", "run_ended"}

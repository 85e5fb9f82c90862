"""The log: each line one JSON object with the run's context, and never the path of a source file."""

from __future__ import annotations

import io
import json
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rfss_core.errors import InputError, SettingsError
from rfss_core.events import CaseQuarantined, ChunkFinished, Event, QualityMeasured
from rfss_core.settings import LogSettings
from tasks.json_lines import LINE_FIELDS, JsonLines, event_fields
from tasks.log_context import SOURCE, LogContext, log_context, log_fields, run_context, source_folders, unit_fields
from tasks.logs import open_logs, write_worker_log
from tasks.progress import log_event
from tasks.retry import RetryPolicy
from tasks.worker import Work, run_item

log = logging.getLogger("rfss")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), TEXT, st.none(), st.dictionaries(TEXT, st.floats()))


@contextmanager
def kept_lines(how: LogSettings) -> Iterator[Path]:
    assert how.file is not None
    with open_logs(how):
        yield how.file


def parsed(text: str) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@settings(deadline=None)
@given(TEXT, st.dictionaries(st.sampled_from(["slices", "read_s", "dice", "stage", "seconds", "secret"]), VALUES))
@example('quote " backslash \\ line\nbreak \u2028 é', {"read_s": math.nan, "dice": {"mean": math.inf}})
def test_every_record_is_one_line_of_json_with_our_fields_alone(message: str, extra: dict[str, Any]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("rfss")  # noqa: LOG001 - one of its own, without handlers
    logger.addHandler(handler)
    logger.info("%s", message, extra=extra)
    text = stream.getvalue()
    assert text.count("\n") == 1
    [line] = parsed(text)
    assert list(line) == [name for name in LINE_FIELDS if name in line]
    assert line["message"] == message
    assert (line["level"], line["logger"]) == ("INFO", "rfss")
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("format_", ["json", "text"])
@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30))
@example("Müller, Jürgen's scan (1)")
@example('O"Brien')
def test_no_line_holds_a_path_below_the_sources(format_: str, name: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if format_ == "json" else logging.Formatter("%(message)s"))
    log.addHandler(handler)
    name = name.replace("/", "-")
    path = f"/data/ward 7/images/{name}.nii.gz"
    try:
        with run_context(LogContext(sources=source_folders("/data/ward 7/images", "/data/labels/*.nii"))):
            log.warning("cannot read '%s': it is truncated; see /data/labels/%s.nii", path, name)
            log.warning("failed", exc_info=OSError(5, "Input/output error", path))
    finally:
        log.removeHandler(handler)
    said = stream.getvalue()
    assert "/data/ward 7/images/" not in said
    assert "/data/labels/" not in said
    assert "it is truncated" in said
    assert SOURCE in said
    assert "OSError" in said


def test_folders_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert source_folders("images", None) == (str(tmp_path / "images"),)
    assert source_folders("/a/b/sub-*/x.nii.gz") == ("/a/b",)
    assert source_folders("/a/b/Smith.nii.gz") == ("/a/b",)
    assert set(source_folders("link")) == {str(tmp_path / "link"), str(tmp_path / "real")}
    assert source_folders("/", "/*.png") == (), "everything is below the root"


def test_context_reaches_threads_and_ends_with_the_run(tmp_path: Path) -> None:
    with kept_lines(LogSettings(format="json", level="debug", file=tmp_path / "a" / "log.jsonl")) as path:
        with run_context(LogContext({"run": "r1", "flow_run": "f1"})):
            thread = threading.Thread(target=log.warning, args=("of a thread",))
            thread.start()
            thread.join()
            with log_fields(stage="embed", chunk="c1", case=[]):
                log.debug("inner")
            log.info("outer")
        log.info("after")
    first, inner, outer, after = parsed(path.read_text())
    assert first["run"] == "r1"
    assert (inner["stage"], inner["chunk"], inner["flow_run"]) == ("embed", "c1", "f1")
    assert "case" not in inner
    assert "stage" not in outer
    assert "run" not in after
    assert log_context() == LogContext()


class _Chunk:
    id = "chunk-7"
    case_ids = tuple(f"case-{number}" for number in range(30))


def test_work_carries_the_runs_context_to_where_it_is_done(tmp_path: Path) -> None:
    def read(_: object) -> None:
        raise ValueError("no")

    with run_context(LogContext({"run": "r2"})):
        work = Work(read, "segment", None, RetryPolicy(1))
    with kept_lines(LogSettings(format="json", level="debug", file=tmp_path / "log.jsonl")) as path:
        run_item(work, _Chunk(), "3")
    lines = parsed(path.read_text())
    assert [line["message"] for line in lines] == ["begins", "failed"]
    for line in lines:
        assert (line["run"], line["stage"], line["chunk"], line["worker"]) == ("r2", "segment", "chunk-7", "3")
        assert line["case"] == list(_Chunk.case_ids[:20])
    assert "ValueError: no" in lines[1]["exc_info"]
    assert unit_fields("text") == {"chunk": None, "case": []}


@pytest.mark.parametrize(
    "event",
    [
        CaseQuarantined("ward/Smith^John", "truncated", "Smith^John.nii: ends early", "case-1"),
        QualityMeasured({"mean": 0.5}, {"mean": None}, {"accept": 1}, (0.25, 0.75), True),
    ],
)
def test_lines_of_events_name_cases_by_their_ids(event: Event, tmp_path: Path) -> None:
    with kept_lines(LogSettings(format="json", file=tmp_path / "log.jsonl")) as path:
        log_event(event)
    text = path.read_text()
    [line] = parsed(text)
    assert "Smith" not in text
    assert "0.25" not in text
    assert line["event"] == event_fields(event)["event"]
    assert line.get("case", ["case-1"]) == ["case-1"]


def test_numbers_of_events_are_fields(tmp_path: Path) -> None:
    with kept_lines(LogSettings(format="json", level="debug", file=tmp_path / "log.jsonl")) as path:
        log_event(ChunkFinished("embed", "c", 3, 0.5, 1.25, 0.0))
    [line] = parsed(path.read_text())
    assert (line["event"], line["slices"], line["compute_s"]) == ("chunk_finished", 3, 1.25)


def test_json_takes_over_what_others_write_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    other = logging.getLogger("some.library")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("plain %(message)s"))
    other.addHandler(handler)
    other.propagate = False
    try:
        with open_logs(LogSettings(format="json")):
            other.warning("mine")
            logging.getLogger("yet.another").warning("root's")
            log.info("ours")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("of\npython", RuntimeWarning, stacklevel=1)
        other.warning("later")
    finally:
        other.removeHandler(handler)
    *lines, last = capfd.readouterr().err.splitlines()
    assert [line["message"] for line in parsed("\n".join(lines[:3]))] == ["mine", "root's", "ours"]
    [warned] = parsed("\n".join(lines[3:]))
    assert "of\npython" in warned["message"]
    assert last == "plain later"


def test_text_leaves_workers_alone() -> None:
    before = list(log.handlers)
    write_worker_log(LogSettings())
    assert log.handlers == before


def test_environment_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFSS_LOG_FORMAT", "JSON")
    monkeypatch.setenv("RFSS_LOG_LEVEL", "warning")
    monkeypatch.setenv("RFSS_LOG_FILE", str(tmp_path / "l"))
    assert LogSettings.from_environment() == LogSettings(format="json", level="warning", file=tmp_path / "l")
    monkeypatch.setenv("RFSS_LOG_FORMAT", "xml")
    with pytest.raises(SettingsError, match=r"RFSS_LOG_FORMAT is 'xml'.*'text' or 'json'"):
        LogSettings.from_environment()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), open_logs(LogSettings(file=tmp_path / "file" / "x")):
        pass

"""Metrics: they add up to the events, can be scraped over HTTP, outlive their run in a file, and never end it."""

from __future__ import annotations

import logging
import math
import socket
from collections import Counter
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from flows.service.metrics import served_metrics
from rfss_core.errors import PortTakenError, SettingsError
from rfss_core.events import (
    CaseQuarantined,
    ChunkFailed,
    ChunkFinished,
    ChunkRetried,
    Event,
    QualityMeasured,
    RunEnded,
    RunStarted,
    StageFinished,
    StageStarted,
)
from rfss_core.settings import LabelSettings, ObservabilitySettings
from tasks.executor import Load
from tasks.exporter import exported, file_name
from tasks.metrics import RunMetrics

STAGES = st.sampled_from(["ingest", "embed", "segment"])
REASONS = st.sampled_from(["store", "killed_worker", "truncated"])
EVENTS = st.one_of(
    st.builds(ChunkFinished, STAGES, st.just("c"), st.integers(0, 9), *[st.floats(0, 99)] * 3),
    st.builds(ChunkRetried, STAGES, st.just("c"), st.integers(1, 3), REASONS, st.just("m")),
    st.builds(ChunkFailed, STAGES, st.just("c"), REASONS, st.just("m")),
    st.builds(CaseQuarantined, st.sampled_from(["a", "b", "c"]), REASONS, st.just("m")),
)
BEGIN = RunStarted("label-dataset", "hearts", "tiny", "local", "1.0")


def heard(*events: Event, load: Load | None = None) -> RunMetrics:
    metrics = RunMetrics("r1", None if load is None else lambda: load)
    for event in (BEGIN, *events):
        metrics(event)
    return metrics


def value(metrics: RunMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"rfss_{name}", {"flow": "label-dataset", "dataset": "hearts", **labels})


@settings(deadline=None, max_examples=30)
@given(st.lists(EVENTS, max_size=40))
def test_metrics_add_up_to_the_events(events: list[Event]) -> None:
    metrics = heard(*(StageStarted(stage, 50, 3) for stage in ("ingest", "embed", "segment")), *events)
    for stage in ("ingest", "embed", "segment"):
        own = [event for event in events if getattr(event, "stage", "") == stage]
        done = [event for event in own if isinstance(event, ChunkFinished)]
        failed = sum(isinstance(event, ChunkFailed) for event in own)
        assert value(metrics, "chunks_total", stage=stage, outcome="done") == len(done)
        assert value(metrics, "chunks_total", stage=stage, outcome="failed") == failed
        assert value(metrics, "chunks_total", stage=stage, outcome="found") == 3
        assert value(metrics, "slices_total", stage=stage) == sum(event.slices for event in done)
        assert value(metrics, "queue_chunks", stage=stage, state="left") == 47 - len(done) - failed
        for phase in ("read", "compute", "write"):
            seconds = [getattr(event, f"{phase}_s") for event in done]
            assert (value(metrics, "chunk_seconds_count", stage=stage, phase=phase) or 0) == len(seconds)
            total = value(metrics, "chunk_seconds_sum", stage=stage, phase=phase) or 0.0
            assert math.isclose(total, sum(seconds), abs_tol=1e-6)
        for reason, count in Counter(event.reason for event in own if isinstance(event, ChunkRetried)).items():
            assert value(metrics, "retries_total", stage=stage, reason=reason) == count
    aside = {(event.name, event.reason) for event in events if isinstance(event, CaseQuarantined)}
    for reason, count in Counter(reason for _, reason in aside).items():
        assert value(metrics, "quarantined_cases_total", reason=reason) == count, "a case counts once"


def test_queue_and_workers_are_those_of_the_moment() -> None:
    load = Load(4, 12)
    metrics = heard(StageStarted("embed", 10, 0), load=load)
    assert value(metrics, "workers") == 4
    assert value(metrics, "queue_chunks", stage="embed", state="in_flight") == 10, "no more than there are"
    metrics(StageFinished("embed", 2.0))
    assert value(metrics, "queue_chunks", stage="embed", state="in_flight") == 0
    assert value(metrics, "stage_seconds", stage="embed") == 2.0
    metrics(RunEnded("failed", 3.0))
    assert (value(metrics, "run_running"), value(metrics, "run_ended", state="failed")) == (0, 1)


def test_quality() -> None:
    metrics = heard(QualityMeasured({"LV": 0.9, "mean": None}, {"LV": 0.8}, {"review": 2}, (0.42, 0.97), False))
    assert value(metrics, "held_out_dice", **{"class": "LV"}) == 0.9
    assert math.isnan(value(metrics, "held_out_dice", **{"class": "mean"}) or 0)
    assert value(metrics, "held_out_dice_low", **{"class": "LV"}) == 0.8
    assert value(metrics, "decided_cases", decision="review") == 2
    assert value(metrics, "predicted_dice_bucket", le="0.45") == 1
    assert value(metrics, "gate_passed") == 0


def test_served_while_the_run_lasts_and_kept_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rfss")
    metrics = heard(StageStarted("embed", 2, 0))
    wanted = ObservabilitySettings(metrics_port=0, metrics_folder=str(tmp_path / "deep"))
    with exported(metrics.registry, wanted, "rfss-x.prom"):
        address = caplog.messages[-1].removeprefix("metrics at ")
        metrics(ChunkFinished("embed", "c", 5, 0, 0, 0))
        answer = httpx.get(address, trust_env=False)
        assert 'rfss_slices_total{dataset="hearts",flow="label-dataset",stage="embed"} 5.0' in answer.text
        assert list(text_string_to_metric_families(answer.text))
        assert (tmp_path / "deep" / "rfss-x.prom").is_file()
        metrics(ChunkFinished("embed", "d", 2, 0, 0, 0))
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)
    assert 'stage="embed"} 7.0' in (tmp_path / "deep" / "rfss-x.prom").read_text()


def test_what_cannot_be_served_or_written_costs_the_metrics_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = ObservabilitySettings(metrics_port=port, metrics_folder=str(tmp_path / "file"))
        with exported(heard().registry, wanted, "x.prom"):
            pass
        assert f"port {port} cannot be used" in caplog.text
        assert "RFSS_METRICS_PORT" in caplog.text
        assert "metrics are not written" in caplog.text
        with pytest.raises(PortTakenError, match="--metrics-port"), served_metrics(tmp_path, "127.0.0.1", port):
            pass


def test_a_service_serves_the_metrics_of_all_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    with served_metrics(folder, "127.0.0.1", 0) as address:
        assert httpx.get(address, trust_env=False).text.strip() == ""
        keep = ObservabilitySettings(metrics_folder=str(folder))
        old = heard(StageStarted("embed", 9, 0), ChunkFinished("embed", "c", 5, 1, 1, 1))
        with exported(old.registry, keep, file_name("label-dataset", "hearts", "one")):
            pass
        new = heard(StageStarted("embed", 9, 0), ChunkFinished("embed", "c", 8, 1, 1, 1))
        with exported(new.registry, keep, file_name("label-dataset", "hearts", "two")):
            pass
        other = RunMetrics("r2")
        other(RunStarted("evaluate", "lungs", "fast", "gpus", "1.0"))
        with exported(other.registry, keep, file_name("evaluate", "lungs", "one")):
            text = httpx.get(address, trust_env=False).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    slices = [s for s in families["rfss_slices"].samples if s.name == "rfss_slices_total"]
    assert [sample.value for sample in slices] == [8.0], "of the same flow and data set the newest run counts"
    running = {sample.labels["dataset"]: sample.value for sample in families["rfss_run_running"].samples}
    assert running == {"hearts": 1.0, "lungs": 1.0}
    assert families["rfss_chunk_seconds"].type == "histogram"
    assert len({(s.name, *sorted(s.labels.items())) for f in families.values() for s in f.samples}) == sum(
        len(f.samples) for f in families.values()
    )


def test_settings_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFSS_METRICS_PORT", "9464")
    monkeypatch.setenv("RFSS_METRICS_DIR", "/somewhere")
    found = ObservabilitySettings(metrics_port=0).completed()
    assert (found.metrics_port, found.metrics_folder, found.metrics_address) == (0, "/somewhere", None)
    assert ObservabilitySettings().completed().metrics_port == 9464
    monkeypatch.setenv("RFSS_METRICS_PORT", "many")
    with pytest.raises(SettingsError, match="RFSS_METRICS_PORT is 'many'"):
        ObservabilitySettings().completed()


def test_metrics_are_no_part_of_the_fingerprint() -> None:
    places = {"images": "i", "labels": "l", "workspace": "w"}
    watched = LabelSettings.model_validate({**places, "observability": {"metrics_port": 9464}})
    assert watched.scientific() == LabelSettings.model_validate(places).scientific()

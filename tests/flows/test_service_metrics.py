"""``rfss serve --metrics-port``: one address with the metrics of the runs that it started; their log in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from cohorts import VOTE, settings_for, write_cohort
from prometheus_client.parser import text_string_to_metric_families
from service import serving

from tasks.summary import read_summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_served_run_is_seen_by_prometheus_and_speaks_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFSS_LOG_FORMAT", "json")
    cohort = write_cohort(tmp_path / "cohort", patients=8, labelled=6)
    settings = settings_for(cohort, tmp_path / "w", segmentation=VOTE)
    home = tmp_path / "home"
    with serving(home, "--metrics-port", "0", "--no-automations") as service:
        address = json.loads((home / "service.json").read_text())["metrics"]
        assert address in service.said
        answer = service.start("label-dataset/label-dataset", settings.model_dump(mode="json", exclude_unset=True))
        assert answer.is_success, answer.text
        run = service.ended(answer.json()["id"])
        assert run["state_type"] == "COMPLETED", run["state"]
        text = httpx.get(address, trust_env=False).text
        assert "prefect_events_emitted" in httpx.get(f"{service.api}/metrics", trust_env=False).text
        shown = service.logs(run["id"])
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    dice = read_summary(str(tmp_path / "w")).held_out_dice["mean"].mean
    assert found["rfss_held_out_dice", "ellipses", "label-dataset", "mean"] == dice
    assert found["rfss_run_running", "ellipses", "label-dataset"] == 0
    lines = [json.loads(line) for line in (home / "logs" / "runner.log").read_text().splitlines()]
    ours = [line for line in lines if line.get("flow_run") == run["id"] and line["logger"] == "rfss"]
    assert {line["event"] for line in ours if "event" in line} >= {"run_started", "stage_finished", "run_ended"}
    assert any(line["message"].startswith("Finished in state") for line in lines)
    assert "ingest: finished in" in shown
    assert '"message"' not in shown, "Prefect's UI shows text"

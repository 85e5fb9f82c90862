"""Events of promotion at a real Prefect server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from published import publish_dataset, record_of

from rfss_core.datasets.reference import DatasetReference
from rfss_core.store.files import Files
from tasks.dataset_run import register_dataset
from tasks.promotion import demote, promote


def events(*names: str) -> dict[str, dict[str, Any]]:
    """Return the latest event of each name that the server has, waiting until it has all."""
    wanted = {"event": {"name": list(names)}, "order": "DESC"}
    found: dict[str, dict[str, Any]] = {}
    # The server writes events down every few seconds.
    for _ in range(150):
        with get_client(sync_client=True) as client:
            answer = client._client.post("/events/filter", json={"filter": wanted})
        found = {event["event"]: event for event in reversed(answer.json()["events"])}
        if len(found) == len(names):
            break
        time.sleep(0.2)
    return found


def test_prefect_is_told_of_promotions_from_flows_and_from_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    published = publish_dataset(tmp_path, "told")
    registry = register_dataset(record_of(published), Files(published.workspace)).registry
    assert promote(registry, DatasetReference("told")).told_prefect

    @flow
    def demoting() -> bool:
        return demote(registry, "told").told_prefect

    assert demoting()
    found = events("rfss.dataset.promoted", "rfss.dataset.demoted")
    promoted, demoted = found["rfss.dataset.promoted"], found["rfss.dataset.demoted"]
    assert promoted["resource"] == {"prefect.resource.id": "rfss.dataset.told", "prefect.resource.name": "told"}
    by = promoted["payload"].pop("by")
    assert by
    assert promoted["payload"] == {
        "name": "told", "version": "1", "digest": published.manifest.digest, "tracking_uri": registry.uri,
        "previous": None,
    }  # fmt: skip
    assert not promoted["related"]
    assert any(item["prefect.resource.id"].startswith("prefect.flow-run.") for item in demoted["related"])

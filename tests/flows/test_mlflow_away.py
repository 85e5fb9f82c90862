"""An MLflow server that is away when a run starts, in its middle, or at its end: nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import VOTE, settings_for
from mlflow_server import mlflow_server
from s3 import FlakyProxy

from flows.label_dataset import label_dataset
from flows.session import terminal_listener
from rfss_core.errors import RegistryError
from rfss_core.events import Event, StageStarted
from rfss_core.settings import LabelSettings
from rfss_core.store import Workspace
from rfss_core.store.lease import read_lease
from tasks.summary import Summary


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyProxy]:
    """The only line to a real server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with (
        mlflow_server(folder, (folder / "artifacts").as_uri(), auth=False) as server,
        FlakyProxy(int(server.uri.rsplit(":", 1)[1])) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.port}")
        # MLflow's own client tries for minutes where the server was there a moment ago.
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        yield proxy


def run(settings: LabelSettings, line: FlakyProxy, cut_at: str, mended_at: str = "") -> Summary:
    """Label, with the line cut when one stage starts and mended when another does."""

    def listen(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage in (cut_at, mended_at):
            line.away = event.stage == cut_at

    token = terminal_listener.set(listen)
    try:
        return label_dataset(settings)
    finally:
        terminal_listener.reset(token)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_registry_that_is_away_costs_a_second_start_at_most(line: FlakyProxy, cohort: Path, tmp_path: Path) -> None:
    settings = settings_for(cohort, tmp_path / "w", segmentation=VOTE)
    line.away = True
    with pytest.raises(RegistryError, match="does not answer; start it, or set the address right"):
        label_dataset(settings)
    assert not (tmp_path / "w" / "manifest").exists()

    line.away = False
    with pytest.raises(RegistryError, match=r"does not answer|stopped answering"):
        run(settings, line, cut_at="register")
    found = read_lease(Workspace.open(settings.workspace).files)
    assert found is not None
    assert found[1].ended == "failed"
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "w" / "records").rglob("*.json")}
    assert {"ingest", "embed", "segment"} <= {path.relative_to(tmp_path / "w" / "records").parts[0] for path in records}
    line.away = False
    summary = label_dataset(settings)
    assert summary.dataset.status == "accepted"
    assert summary.dataset.version == "1"
    assert {path: path.stat().st_mtime_ns for path in records} == records, "finished work was done again"

    # Away in the middle is not even noticed.
    other = settings_for(cohort, tmp_path / "w2", segmentation=VOTE)
    assert run(other, line, cut_at="embed", mended_at="publish").dataset.status == "accepted"
    assert line.failed

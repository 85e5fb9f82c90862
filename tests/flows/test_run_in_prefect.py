"""What a run tells Prefect: named states, pictures, events; stores as blocks; the form; automations."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cohorts import VOTE, settings_for
from prefect.client.orchestration import get_client
from s3 import FlakyProxy, make_bucket

from flows.label_dataset import label_dataset
from flows.service.automations import set_up
from flows.service.deployments import SERVED, Nightly
from flows.store_block import RfssStore, resolved
from rfss_core.errors import GateError, InputError, InputNotFoundError, SettingsError
from rfss_core.events import EventStream
from rfss_core.settings import LabelSettings
from rfss_core.store import Workspace
from tasks.drift import drift
from tasks.execution import InlineExecutor
from tasks.run import Run
from tasks.segment import Masks
from tasks.summary import read_summary


def artifacts_of(run_id: Any) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        found = client._client.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [str(run_id)]}}}).json()
    return {artifact["key"]: artifact for artifact in found}


def test_states_and_artifacts_say_how_a_run_went(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    (folder / "images" / "torn.nii.gz").write_bytes(b"not an image")
    settings = settings_for(folder, tmp_path / "w", segmentation=VOTE)
    state = label_dataset(settings, return_state=True)
    assert state.name == "Completed with quarantine"
    assert state.message == "1 case was set aside: truncated 1"
    summary = state.result()
    assert summary.cases.quarantined == 1
    artifacts = artifacts_of(state.state_details.flow_run_id)
    assert artifacts["rfss-overlays"]["data"].count("data:image/webp;base64,") == 3
    assert "slices/s" in artifacts["rfss-segment"]["description"]
    assert not [key for key, artifact in artifacts.items() if "sub-" in str(artifact["data"])], "cases are named"

    strict = settings_for(folder, tmp_path / "w", segmentation=VOTE, quality={"min_dice": 1.0, "bootstrap": 200})
    state = label_dataset(strict, return_state=True)
    assert state.name == "Failed: gate"
    assert "mean Dice" in str(state.message)
    with pytest.raises(GateError, match="mean Dice"):
        state.result()
    missing = settings_for(folder, tmp_path / "w", images=str(tmp_path / "nowhere"))
    assert label_dataset(missing, return_state=True).name == "Failed: not found"

    # Drift: the same workspace did better before.
    before = read_summary(str(tmp_path / "w"))
    worse = before.model_copy(deep=True)
    assert before.held_out_dice["mean"].mean is not None
    worse.held_out_dice["mean"].mean = before.held_out_dice["mean"].mean - 0.06
    workspace = Workspace.open(tmp_path / "w")
    run = Run(settings, workspace, InlineExecutor(settings.execution), EventStream())
    masks = Masks("0" * 16, (), "none", "none", trained=True)
    [said] = drift(run, masks, worse, before)
    assert "the mean held-out Dice fell" in said
    assert drift(run, masks, before, before) == []
    assert drift(run, masks, before, None) == []


def test_the_form_says_what_every_field_is_and_allows() -> None:
    for served in SERVED:
        schema = served.load().to_deployment(served.name)._parameter_openapi_schema.model_dump()
        texts = [part.get("description") for part in schema["definitions"].values()]
        fields = [field for part in schema["definitions"].values() for field in part.get("properties", {}).items()]
        for name, field in fields:
            referred = schema["definitions"].get(field.get("$ref", "").rsplit("/", 1)[-1], {})
            text = field.get("description") or referred.get("description")
            assert text, name
            texts.append(text)
            assert field.get("title") or "$ref" in field, name
            # Forms take it for HTML and swallow it.
            assert "<" not in text, name
            bounded = [option for option in (field, *field.get("anyOf", ())) if "maximum" in option]
            assert not bounded or "Allowed: " in text, name
    properties = LabelSettings.model_json_schema()["properties"]
    assert properties["k"]["description"].endswith("Allowed: at least 1, at most 256.")
    assert properties["held_out"]["title"] == "Held out"


def test_a_store_is_a_block_whose_secrets_stay_where_they_are(
    proxy: FlakyProxy, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(proxy.port)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = RfssStore(
        url=f"{bucket}/labelling", access_key_id="the-key", secret_access_key="the-secret", endpoint_url=endpoint
    )
    store.save("hospital", overwrite=True)
    settings = settings_for(cohort, tmp_path).model_copy(update={"workspace": "block://hospital/hearts"})
    with resolved(settings) as real:
        assert real.workspace == f"{bucket}/labelling/hearts"
        assert os.environ["AWS_SECRET_ACCESS_KEY"] == "the-secret"
        Workspace.open(real.workspace).files.write_bytes("datasets/one", b"here")
        assert Workspace.open(real.workspace).files.read_bytes("datasets/one") == b"here"
        assert "the-secret" not in str(real)
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ
    assert "the-secret" not in str(settings) + repr(store)
    for address, error, said in (
        ("block://elsewhere/x", InputNotFoundError, "there is no store 'elsewhere'"),
        ("block://hospital/../x", SettingsError, "leaves its store"),
        ("block://", SettingsError, "names no store"),
    ):
        with pytest.raises(error, match=said), resolved(settings.model_copy(update={"workspace": address})):
            pass


def test_automations_are_set_up_once() -> None:
    def by_name() -> dict[str, Any]:
        with get_client(sync_client=True) as client:
            return {each["name"]: each for each in client._client.post("/automations/filter", json={}).json()}

    lines = set_up("http://127.0.0.1:9/hook")
    assert any(line.startswith("set up 'RFSS: quality gate failed'") for line in lines)
    first = by_name()
    zombie = first["RFSS: zombie run is crashed"]
    with get_client(sync_client=True) as client:
        client._client.patch(f"/automations/{zombie['id']}", json={"enabled": False})
    again = set_up()
    assert "up to date 'RFSS: zombie run is crashed' (switched off)" in again
    assert "up to date 'RFSS: quality gate failed'" in again, "written again, Prefect forgets whom it waits for"
    assert set(by_name()) == set(first)
    assert not by_name()["RFSS: zombie run is crashed"]["enabled"]
    with pytest.raises(InputError, match="is not a URL"):
        set_up("hooks.example.org")


@pytest.mark.parametrize(
    ("nightly", "said"),
    [(Nightly(timezone="Mars/Olympus"), "time zone 'Mars/Olympus'"), (Nightly(cron="soon"), "'soon' is not a cron")],
)
def test_a_schedule_that_cannot_be_is_refused(nightly: Nightly, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        nightly.schedule(active=True)

"""Commands of the data registry, as a user calls them: what they print, and what they say to bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from published import publish_dataset, record_of

from flows.cli import main
from rfss_core.store.files import Files
from tasks.dataset_run import register_dataset


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "RFSS_WORKSPACE"):
        monkeypatch.delenv(variable, raising=False)
    # Wide enough that no line is broken.
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        published = publish_dataset(tmp_path_factory.mktemp("commands"))
        register_dataset(record_of(published), Files(published.workspace))
        register_dataset(record_of(published, fingerprint="bad", status="rejected"), Files(published.workspace))
    return published.workspace


@pytest.fixture
def workspace(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "work"))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(str(end.value.code or 0)), said.out, said.err


def test_a_data_set_is_listed_promoted_and_demoted(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "promote", "hearts", "--workspace", workspace)
    assert code == 0
    assert "hearts/1 is the champion now (no champion before" in out
    assert "Prefect was told" in out
    code, out, _ = call(capsys, "promote", "hearts/1", "--workspace", workspace)
    assert "hearts/1 is the champion already" in out
    code, out, _ = call(capsys, "datasets", "--workspace", workspace)
    assert code == 0
    for wanted in ("hearts", "candidate, champion", "accepted", "rejected", "0.800"):
        assert wanted in out
    code, out, _ = call(capsys, "datasets", "hearts", "--workspace", f"sqlite:///{workspace / 'mlflow.db'}", "--json")
    newest, oldest = json.loads(out)["hearts"]
    assert (newest["version"], newest["status"], newest["aliases"]) == ("2", "rejected", [])
    assert (oldest["held_out_dice"], oldest["aliases"]) == (0.8, ["candidate", "champion"])
    code, out, _ = call(capsys, "lineage", "hearts@champion", "--workspace", workspace)
    assert code == 0
    order = [out.index(word) for word in ("support 555555555555", "run ", "dataset hearts/1 <-")]
    assert order == sorted(order)
    code, out, _ = call(capsys, "lineage", "hearts@champion", "--workspace", workspace, "--json")
    assert len(json.loads(out)["edges"]) == 2
    code, out, _ = call(capsys, "demote", "hearts", "--workspace", workspace)
    assert (code, "hearts has no champion any more; it was version 1" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote", "lungs"], "no data set 'lungs' is registered"),
        (["promote", "hearts/9"], "has no version 9; it has versions 2, 1"),
        (["promote", "hearts@best"], "has no alias 'best'"),
        (["promote", "hearts/2"], "failed its quality gate and is never promoted"),
        (["promote", "hearts@"], "'hearts@' names no data set"),
        (["rollback", "hearts"], "has no champion; promote a version"),
        (["demote", "lungs"], "no data set 'lungs'"),
        (["datasets", "lungs"], "there are: hearts"),
        (["lineage", "lungs@champion"], "no data set 'lungs'"),
    ],
)
def test_bad_input_gets_one_line(
    original: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *arguments, "--workspace", original)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_no_registry_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message, expected in (
        (["datasets"], "nothing says where data sets are registered; set MLFLOW_TRACKING_URI", 2),
        (["datasets", "--workspace", str(tmp_path)], "holds no mlflow.db", 2),
        (
            ["datasets", "--workspace", "http://127.0.0.1:9"],
            "the MLflow server at http://127.0.0.1:9 does not answer",
            1,
        ),
    ):
        code, _, err = call(capsys, *arguments)
        assert (code, message in err, err.count("\n")) == (expected, True, 1), err

"""Salted case ids: a planted name is nowhere but in the private file, wherever a run writes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import VOTE, settings_for
from planted import PLANTED, search, write_planted
from prefect.settings import get_current_settings

from flows.label_dataset import label_dataset
from flows.select_slices import select_slices
from rfss_core.datasets import load
from rfss_core.errors import InputError, SettingsError
from rfss_core.settings import LabelSettings, PrivacySettings, SelectSettings
from rfss_core.store import Workspace
from rfss_core.store.private import FOLDER, private_names
from tasks.export import export_dataset, export_settings
from tasks.review import export_review
from tasks.status import read_status

SALT = "the salt of this test, nobody else's"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("site"))


def salted(planted: Path, workspace: Path, **changes: object) -> LabelSettings:
    return settings_for(
        planted,
        workspace,
        segmentation=VOTE,
        k=2,
        privacy={"case_ids": "salted"},
        execution={"max_quarantined_fraction": 0.9},
        **changes,
    )


def prefect_database() -> Path:
    address = get_current_settings().server.database.connection_url
    assert address is not None
    return Path(address.get_secret_value().partition("///")[2])


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "Prefect did not get the log"
        time.sleep(0.5)


def test_a_planted_name_is_in_nothing_that_a_run_leaves(
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RFSS_CASE_SALT", SALT)
    workspace = tmp_path / "w"
    settings = salted(planted, workspace)
    with caplog.at_level(logging.DEBUG):
        summary = label_dataset(settings)
        assert (summary.cases.labelled, summary.cases.unlabelled, summary.cases.quarantined) == (4, 4, 6)
        place = tmp_path / "selection"
        chosen = select_slices(
            SelectSettings.model_validate({**settings.model_dump(), "selection": {"n": 2}}), str(place)
        )
        assert {item.source for item in chosen.chosen} == {""}
        export_review(str(workspace), tmp_path / "review")
        for kind in ("nifti", "bids", "ome-zarr"):
            options = export_settings({"format": kind, "with_expert": kind != "nifti"})
            export_dataset(workspace, tmp_path / kind, options)
    logged = tmp_path / "logged.txt"
    out = capfd.readouterr()
    logged.write_text("\n".join([caplog.text, out.out, out.err]))
    assert "truncated" in caplog.text
    (tmp_path / "status.json").write_text(read_status(str(workspace)).model_dump_json())

    names = private_names(Workspace.open(workspace).files)
    labelled = sorted(path.name for path in (workspace / "pseudo_labels").iterdir())
    assert len(labelled) == 4
    torn = next(entry.id for entry in names.values() if "torn" in entry.name)
    database = prefect_database()
    # Prefect's client hands logs over now and then.
    until(lambda: search(database.parent, words=(torn,)))
    assert search(tmp_path, database.parent, skip=(workspace / FOLDER,), words=(*PLANTED, SALT)) == []
    # The search does find what is there.
    assert len(search(workspace / FOLDER)) == len(PLANTED)

    # On request the names come back, on the same voxels.
    export_dataset(workspace, tmp_path / "named", export_settings({"original_names": True}))
    restored = tmp_path / "named" / "sub-Mustermann04" / "anat" / "Erika^Mustermann_4.nii.gz"
    [own] = [entry.id for entry in names.values() if entry.name.endswith("Mustermann_4")]
    assert restored.read_bytes() == (workspace / "pseudo_labels" / f"{own}.nii.gz").read_bytes()
    assert "Mustermann04" in (tmp_path / "named" / "cases.csv").read_text()
    with pytest.raises(InputError, match="--original-names"):
        export_dataset(workspace, tmp_path / "seg", export_settings({"format": "dicom-seg"}))
    # Whoever has the salt finds the files of a data set's cases.
    dataset = load(workspace)
    assert own in dataset.origin.sources

    # The same again does nothing; another salt, or none, is refused before anything is written.
    again = label_dataset(settings)
    assert (again.fingerprint, again.dataset.digest) == (summary.fingerprint, summary.dataset.digest)
    monkeypatch.setenv("RFSS_CASE_SALT", "another salt, by accident")
    with pytest.raises(SettingsError, match="restore the old salt"):
        label_dataset(settings)
    with pytest.raises(SettingsError, match="--case-ids salted"):
        label_dataset(settings.model_copy(update={"privacy": PrivacySettings()}))


@pytest.mark.slow
def test_the_command_line_with_workers_of_its_own_names_nobody(planted: Path, tmp_path: Path) -> None:
    workspace, salt = tmp_path / "w", tmp_path / "keys" / "salt"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "RFSS_CASE_SALT_FILE": str(salt),
        "COLUMNS": "200",
    }

    def rfss(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    config = tmp_path / "config.yaml"
    settings = salted(planted, workspace).model_dump(include={"segmentation", "k", "quality", "execution"}, mode="json")
    config.write_text(json.dumps(settings))
    images, labels = str(planted / "images"), str(planted / "labels")
    common = ("--case-ids", "salted", "--config", str(config), "-v")
    said = rfss("label", images, "--labels", labels, "--workspace", str(workspace), "--executor", "local", *common)
    said += rfss(
        "evaluate", "--images", images, "--labels", labels, "--out", str(tmp_path / "evaluation.json"), *common
    )
    said += rfss("status", str(workspace)) + rfss("status", str(workspace), "--json")
    said += rfss("export", str(workspace), "--format", "bids", "--with-expert", "--out", str(tmp_path / "bids"))
    said += rfss("datasets", "--workspace", str(workspace), "--json")
    (tmp_path / "said.txt").write_text(said)
    skip = (workspace / FOLDER, salt)
    assert search(tmp_path, skip=skip, words=(*PLANTED, salt.read_text().strip())) == []
    assert "MUSTERMANN^ERIKA" in rfss("names", str(workspace))
    listed = tmp_path / "names.csv"
    rfss("names", str(workspace), "--out", str(listed))
    assert listed.stat().st_mode & 0o777 == 0o600

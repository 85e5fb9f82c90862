"""``rfss names`` and the command line's refusals around salted case ids; no flow runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from planted import write_planted
from typer.testing import CliRunner

from flows.cli import app
from flows.options import check_places
from rfss_core.errors import InputError, InputNotFoundError, SettingsError
from rfss_core.imaging import Pseudonyms, discover
from rfss_core.settings import ImagingSettings, PrivacySettings, load_settings
from rfss_core.store import Workspace
from rfss_core.store.private import hold_identity, keep_private

SALT = "the salt of these tests"
RUNNER = CliRunner()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RFSS_CASE_SALT", SALT)
    monkeypatch.setenv("COLUMNS", "300")
    images, pseudonyms = str(write_planted(tmp_path / "site") / "images"), Pseudonyms(SALT.encode())
    files = Workspace.open(tmp_path / "w").files
    hold_identity(files, pseudonyms)
    keep_private(files, discover(images, None, ImagingSettings(), pseudonyms).private)
    return tmp_path / "w"


def test_names_tells_what_ids_stand_for(workspace: Path, tmp_path: Path) -> None:
    patient = Pseudonyms(SALT.encode()).patient("sub-Mustermann03")
    told = RUNNER.invoke(app, ["names", str(workspace), patient], catch_exceptions=False).output
    assert "1 names" in told
    assert "Erika^Mustermann_3" in told
    out = tmp_path / "names.csv"
    RUNNER.invoke(app, ["names", str(workspace), "--out", str(out)], catch_exceptions=False)
    table = pd.read_csv(out, keep_default_na=False)
    assert out.stat().st_mode & 0o777 == 0o600
    assert "7719041" in set(table["patient"])
    with pytest.raises(InputError, match="knows no case"):
        RUNNER.invoke(app, ["names", str(workspace), "p-000000000000"], catch_exceptions=False)
    with pytest.raises(InputError, match="cannot be written"):
        RUNNER.invoke(app, ["names", str(workspace), "--out", str(tmp_path / "no" / "n.csv")], catch_exceptions=False)
    Workspace.open(tmp_path / "plain")
    with pytest.raises(InputNotFoundError, match="are the names already"):
        RUNNER.invoke(app, ["names", str(tmp_path / "plain")], catch_exceptions=False)


def test_another_salt_is_refused_before_anything_starts(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    settings = load_settings(
        {
            "images": str(site / "images"),
            "labels": str(site / "labels"),
            "workspace": str(workspace),
            "privacy": {"case_ids": "salted"},
        }
    )
    check_places(settings)
    with pytest.raises(SettingsError, match="--case-ids salted"):
        check_places(settings.model_copy(update={"privacy": PrivacySettings()}))
    monkeypatch.setenv("RFSS_CASE_SALT", "another salt, by accident")
    with pytest.raises(SettingsError, match="restore the old salt"):
        check_places(settings)
    with pytest.raises(SettingsError, match="need --workspace"):
        RUNNER.invoke(app, ["select", str(site / "images"), "--case-ids", "salted"], catch_exceptions=False)


def test_neither_salt_nor_its_place_changes_what_a_run_depends_on() -> None:
    given = {"images": "i", "labels": "l", "workspace": "w"}
    plain = load_settings(given)
    salted = load_settings({**given, "privacy": {"case_ids": "salted", "salt_file": "/elsewhere"}})
    assert plain.scientific() == salted.scientific()
    assert "privacy" not in plain.scientific()

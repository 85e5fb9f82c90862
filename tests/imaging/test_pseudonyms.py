"""Pseudonyms stand in for names, keep patients together, and come from a salt that is kept well."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

import pandas as pd
import pytest
from planted import PLANTED, write_planted

from rfss_core.errors import CaseError, InputError, InputNotFoundError, SettingsError
from rfss_core.imaging import CaseSource, Pseudonyms, discover, hiding, open_pseudonyms, read_image, read_label
from rfss_core.imaging.hiding import hide_names
from rfss_core.retrieval.metadata import COLUMNS, case_metadata
from rfss_core.settings import ImagingSettings, PrivacySettings
from rfss_core.store.files import Files
from rfss_core.store.private import NAMES, hold_identity, keep_private, private_names

SALT = Pseudonyms(b"a salt for these tests")
SETTINGS = ImagingSettings()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted"))


def told(text: object) -> list[str]:
    return [word for word in PLANTED if word in str(text).casefold()]


def test_discovery_keeps_patients_and_reasons_and_says_no_name(planted: Path) -> None:
    images, labels = str(planted / "images"), str(planted / "labels")
    plain, salted = discover(images, labels, SETTINGS), discover(images, labels, SETTINGS, SALT)
    assert told(plain.cases)
    named = {entry.id: entry for entry in salted.private}
    assert {named[case.case_id].name: named[case.case_id].patient for case in salted.cases} == {
        case.name: case.patient for case in plain.cases
    }
    assert sorted(entry.reason for entry in salted.quarantined) == sorted(entry.reason for entry in plain.quarantined)
    for case in salted.cases:
        assert case.case_id == case.name
        assert case.case_id.startswith(f"{case.patient}_c-")
        assert not told([case.case_id, case.patient])
    assert not told([salted.quarantined, salted.ignored])
    assert len({case.patient for case in salted.cases}) == len({case.patient for case in plain.cases})
    # Stable, whatever else lies there; another salt gives other names altogether.
    assert discover(images, None, SETTINGS, SALT).cases[0].case_id in named
    other = discover(images, labels, SETTINGS, Pseudonyms(b"another salt of the tests"))
    assert not {entry.id for entry in other.private} & named.keys()


def test_errors_of_reading_say_the_pseudonym(planted: Path) -> None:
    found = discover(str(planted / "images"), str(planted / "labels"), SETTINGS, SALT)
    errors = {}
    for case in found.cases:
        try:
            with hiding(case):
                volume = read_image(case, SETTINGS)
                if case.label is not None:
                    read_label(case, volume.grid, SETTINGS)
        except CaseError as error:
            errors[case.case_id] = error
    assert {"truncated", "label_shape_mismatch"} <= {error.reason for error in errors.values()}
    for case_id, error in errors.items():
        assert not told(error)
        assert case_id in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "{path}: cannot be read ([Errno 5] Input/output error: '{path}')",
        "{stem}: 3 of 8 voxels are NaN",
        "sub-mustermann99 looks like ERIKA",
        "'Erika_Mustermann_3' and xMustermannx",
    ],
)
def test_no_message_lets_a_name_through(planted: Path, text: str) -> None:
    path = planted / "images" / "sub-Mustermann03" / "anat" / "Erika^Mustermann_3.nii.gz"
    case = CaseSource("p-1_c-1", "p-1_c-1", "p-1", "MR", "nifti", path, None, hidden=(str(path), "sub-Mustermann03"))
    message = text.format(path=path, stem=path.name)
    assert not told(hide_names(message, case))
    for error in (OSError(2, "No such file", str(path)), ValueError(message), KeyError(path)):
        with pytest.raises(Exception) as caught, hiding(case):  # noqa: PT011 - whatever it is, it names nobody
            raise error from RuntimeError(message)
        assert not told("".join(traceback.format_exception(caught.value)))
    assert hide_names("voxels of type complex64 are not grey values", case).startswith("voxels")


def test_the_salt_is_made_once_and_kept_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RFSS_CASE_SALT", raising=False)
    file = tmp_path / "keys" / "salt"
    settings = PrivacySettings(case_ids="salted", salt_file=str(file))
    with pytest.raises(InputNotFoundError, match="is not in"):
        open_pseudonyms(settings, create=False)
    first = open_pseudonyms(settings)
    assert first == open_pseudonyms(settings, create=False)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() not in repr(first)
    monkeypatch.setenv("RFSS_CASE_SALT_FILE", str(file))
    assert open_pseudonyms(PrivacySettings(case_ids="salted")) == first
    monkeypatch.setenv("RFSS_CASE_SALT", "of the environment, which goes first")
    assert open_pseudonyms(PrivacySettings(case_ids="salted")) != first
    assert open_pseudonyms(settings) == first
    assert open_pseudonyms(PrivacySettings()) is None
    monkeypatch.setenv("RFSS_CASE_SALT", "short")
    with pytest.raises(SettingsError, match="needs 16"):
        open_pseudonyms(PrivacySettings(case_ids="salted"))
    file.chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        open_pseudonyms(settings)
    with pytest.raises(SettingsError, match="lies in workspace"):
        open_pseudonyms(settings, workspace=tmp_path)


def test_a_workspace_stays_with_its_salt(planted: Path, tmp_path: Path) -> None:
    files = Files(tmp_path / "w")
    hold_identity(files, SALT)
    hold_identity(files, SALT)
    with pytest.raises(SettingsError, match="restore the old salt"):
        hold_identity(files, Pseudonyms(b"another salt of the tests"))
    with pytest.raises(SettingsError, match="--case-ids salted"):
        hold_identity(files, None)
    plain = Files(tmp_path / "plain")
    hold_identity(plain, None)
    plain.write_bytes("manifest/cases.parquet", b"")
    with pytest.raises(SettingsError, match="plain names"):
        hold_identity(plain, SALT)
    with pytest.raises(InputNotFoundError, match="are the names already"):
        private_names(plain)

    found = discover(str(planted / "images"), None, SETTINGS, SALT).private
    assert keep_private(files, found[:2])
    assert keep_private(files, found[2:])
    assert private_names(files).keys() == {entry.id for entry in found}
    path = files.local_path(NAMES)
    assert path is not None
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    shutil.rmtree(path.parent)
    with pytest.raises(InputNotFoundError, match="not kept beside it"):
        private_names(files)
    assert not keep_private(Files("memory://salted"), found)


def test_the_refusal_of_all_labels_names_nobody(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    shutil.copy(planted / "labels" / "Erika_alone.png", tmp_path / "labels")
    with pytest.raises(InputError, match="none of the 1 labels") as caught:
        discover(str(planted / "images"), str(tmp_path / "labels"), SETTINGS, SALT)
    assert not told(caught.value)


@pytest.mark.parametrize("key", ["name", "patient"])
def test_a_table_of_metadata_keeps_its_plain_names(planted: Path, tmp_path: Path, key: str) -> None:
    plain = discover(str(planted / "images"), None, SETTINGS).cases
    hidden = {entry.name: entry.id for entry in discover(str(planted / "images"), None, SETTINGS, SALT).private}
    chosen = [case for case in plain if "anat" in case.name]
    table = tmp_path / "metadata.csv"
    rows = [f"{getattr(case, key)},site {number}" for number, case in enumerate(chosen)]
    table.write_text("\n".join([f"{key},site", *rows]))
    cases = pd.DataFrame([{**dict.fromkeys(COLUMNS, ""), "name": hidden[case.name]} for case in plain])
    cases["patient"], cases["labelled"] = [SALT.patient(case.patient) for case in plain], False
    sites = dict(zip(cases["name"], case_metadata(cases, str(table), SALT)["site"], strict=True))
    assert [sites[hidden[case.name]] for case in chosen] == [f"site {number}" for number in range(len(chosen))]
    assert sum(site != "" for site in sites.values()) == len(chosen)
    table.write_text("\n".join([f"{key},site", *rows, rows[0]]))
    with pytest.raises(SettingsError, match=rf"lists a {key} more than once \(row {len(rows) + 2}\)"):
        case_metadata(cases, str(table), SALT)

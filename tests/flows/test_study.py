"""Studies end to end: rows, resume, shared rows, planted leaks, and what is refused before hours are spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from cohorts import write_cohort
from layout_folders import acdc

from flows.cli import main
from flows.evaluate import evaluate
from flows.study import prepare, study
from rfss_core.errors import ExecutionError, InputError, LeakError, SettingsError
from rfss_core.settings import load_settings
from rfss_core.study import StudySettings

VOTE = {"name": "vote", "segmenter": "label-fusion", "strategy": ["random", "dino"], "k": 2}


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def settings_of(folder: Path, **changes: object) -> StudySettings:
    given: dict[str, object] = {
        "name": "votes",
        "images": str(folder / "images"),
        "labels": str(folder / "labels"),
        "seeds": [0, 1],
        "support_slices": 6,
        "support_patients": 3,
        "test_patients": 2,
        "methods": [VOTE],
        "claims": [{"text": "dino helps", "above": "vote, dino", "below": "vote, random"}],
    }
    return StudySettings.model_validate(given | changes)


@pytest.fixture(scope="module")
def out(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    outcome = study(settings_of(cohort, thirds=True), str(folder))
    assert (outcome.rows, outcome.read_back) == (4, 0)
    return folder


def test_rows_know_their_command_seed_weights_and_versions(out: Path) -> None:
    content = json.loads((out / "votes" / "study.json").read_text())
    assert [row["seed"] for row in content["rows"]] == [0, 0, 1, 1]
    for row in content["rows"]:
        assert f"--seed {row['seed']}" in row["command"]
        assert len(row["evaluation"]["models"]["embedding"]) == 64
        assert row["versions"]["torch"]
        assert row["evaluation"]["segmented_now"] == 6
    assert {line["label"] for line in content["table"]} == {"vote, random", "vote, dino"}
    assert (out / "votes" / "table.md").read_text().startswith("## ")
    assert len((out / "votes" / "rows.csv").read_text().splitlines()) == 1 + 4 * 3
    assert (out / "votes" / "methods.svg").stat().st_size > 1000


def test_rows_of_a_seed_meet_the_same_patients_and_none_of_the_support(out: Path) -> None:
    rows = json.loads((out / "votes" / "study.json").read_text())["rows"]
    tested = {row["seed"]: set() for row in rows}
    for row in rows:
        one = row["evaluation"]
        patients = {case["patient"] for case in one["per_case"]}
        tested[row["seed"]].add(frozenset(patients))
        assert len(patients) == 2
        assert not patients & set(one["support_patient_names"])
    assert {len(found) for found in tested.values()} == {1}


def test_a_row_is_what_its_command_says(cohort: Path, out: Path, tmp_path: Path) -> None:
    row = json.loads((out / "votes" / "study.json").read_text())["rows"][1]
    words = row["command"].split()[1:]
    words[words.index("--out") + 1] = str(tmp_path / "one.json")
    # The study's workspace spares the time; another one gives the same.
    assert rfss(*words, "--workspace", out / "workspace") == 0
    assert json.loads((tmp_path / "one.json").read_text())["per_case"] == row["evaluation"]["per_case"]


def test_an_interrupted_study_goes_on_and_damaged_rows_are_made_again(cohort: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "copy")
    first, second, *_ = sorted((tmp_path / "copy" / "rows").glob("*.json"))
    kept = first.stat().st_mtime_ns
    second.write_text(second.read_text()[:100])
    outcome = study(settings_of(cohort, thirds=True), str(tmp_path / "copy"))
    assert (outcome.rows, outcome.read_back) == (4, 3)
    assert first.stat().st_mtime_ns == kept
    before, after = (json.loads((place / "votes" / "study.json").read_text()) for place in (out, tmp_path / "copy"))
    assert [line["dice"] for line in after["table"]] == [line["dice"] for line in before["table"]]
    assert after["claims"] == before["claims"]


def test_studies_share_rows_under_any_name(cohort: Path, out: Path) -> None:
    methods = [{"name": "nearest", "segmenter": "label-fusion", "k": 2}]
    outcome = study(settings_of(cohort, name="other", methods=methods, claims=[]), str(out))
    assert (outcome.rows, outcome.read_back) == (2, 2)
    assert "| nearest | 2 |" in outcome.table


def test_a_row_that_fails_costs_only_itself(cohort: Path, tmp_path: Path) -> None:
    broken = {
        "name": "broken",
        "segmenter": "label-fusion",
        "k": 2,
        "settings": {"retrieval": {"filter": {"contains": ["9"]}}},
    }
    given = settings_of(cohort, methods=[broken, VOTE], seeds=[0], claims=[])
    with pytest.raises(ExecutionError, match="1 of 3 rows of study 'votes' are missing, first 'broken', seed 0"):
        study(given, str(tmp_path / "o"))
    assert len(json.loads((tmp_path / "o" / "votes" / "study.json").read_text())["rows"]) == 2


def test_a_copy_of_a_test_image_under_another_name_is_caught(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort", patients=6, labelled=6)
    clean = settings_of(folder, support_patients="all", methods=[{**VOTE, "k": 1}], seeds=[0])
    prepare(clean, str(tmp_path / "clean"))
    for part in ("images", "labels"):
        for number in range(6):
            shutil.copy(folder / part / f"sub-{number:02d}.nii.gz", folder / part / f"sub-{number + 10:02d}.nii.gz")
    with pytest.raises(LeakError, match="has the very pixels of 'sub-"):
        prepare(clean, str(tmp_path / "leaky"))
    settings = load_settings(
        {"images": clean.images, "labels": clean.labels, "workspace": str(tmp_path / "leaky" / "workspace"), "k": 1}
        | {"segmentation": {"segmenter": "label-fusion"}}
    )
    with pytest.raises(LeakError, match="has the very pixels of 'sub-"):
        evaluate(settings, 2)


def test_what_cannot_work_is_said_before_a_model_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_cohort(tmp_path / "cohort", patients=5, labelled=5)
    with pytest.raises(SettingsError, match="row 'vote, random': 4 test and 3 support patients need 7"):
        prepare(settings_of(folder, test_patients=4), str(tmp_path / "a"))
    with pytest.raises(SettingsError, match="k is 10, but the support set has only 9 slices"):
        prepare(settings_of(folder, support_slices=12, methods=[{**VOTE, "k": 10}]), str(tmp_path / "a"))
    few = prepare(settings_of(folder, support_slices=12), str(tmp_path / "a"))
    assert "3 support patients have 9 slices, fewer than 12" in few.notes[0]
    import nibabel as nib
    import numpy as np

    for path in sorted((folder / "labels").iterdir())[1:]:
        label = nib.load(path)
        values = np.asarray(label.dataobj)
        nib.save(nib.Nifti1Image(np.where(values == 2, 1, values).astype(np.uint8), label.affine, label.header), path)
    with pytest.raises(InputError, match=r"no (test patients|support slices) show class 2"):
        prepare(settings_of(folder), str(tmp_path / "b"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"methods": [VOTE], "test_patients": 9}))
    places = ("--images", folder / "images", "--labels", folder / "labels", "--out", tmp_path / "c")
    assert rfss("study", path, *places) == 2
    assert "9 test and 3 support patients need 12" in capsys.readouterr().err.replace("\n", " ")
    assert rfss("study", "table-9", *places) == 2
    assert rfss("study", path, *places, "--data", folder) == 2
    assert rfss("study", path, "--out", tmp_path / "c", "--layout", "acdc") == 2
    assert "give --data FOLDER too" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "c").exists()


def test_check_prints_plan_and_estimate_and_segments_nothing(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"methods": [VOTE], "seeds": [3], "support_slices": 6, "test_patients": 2}))
    places = ("--images", cohort / "images", "--labels", cohort / "labels", "--out", tmp_path / "o")
    assert rfss("study", path, *places, "--check") == 0
    said = capsys.readouterr().out
    assert "mine: 2 rows of 1 seeds" in said
    assert "0 rows are finished" in said
    assert not (tmp_path / "o" / "workspace" / "stages").exists()


def test_a_public_data_set_as_its_publisher_ships_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, shipped = tmp_path / "mine.yaml", acdc(tmp_path / "shipped")
    sizes = {"support_slices": 6, "support_patients": 2, "test_patients": 1}
    path.write_text(yaml.safe_dump({"methods": [VOTE], "seeds": [0], **sizes}))
    assert rfss("study", path, "--data", shipped, "--layout", "acdc", "--out", tmp_path / "o") == 0
    assert "| method | seeds | Dice RV | Dice Myo | Dice LV | Dice mean |" in capsys.readouterr().out
    assert rfss("study", path, "--data", shipped, "--layout", "cityscapes", "--out", tmp_path / "p") == 2
    assert "no layout is known as 'cityscapes'" in capsys.readouterr().err.replace("\n", " ")

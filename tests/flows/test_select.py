"""``rfss select`` on the command line: what it writes, what it shares with ``rfss label``, how it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohorts import save, write_cohort

from flows.cli import main
from rfss_core.phantom import PhantomSettings
from rfss_core.phantom import write_cohort as write_phantoms
from rfss_core.settings import load_settings
from tasks.status import read_status
from tasks.worklist import Selection


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def read(path: Path) -> Selection:
    return Selection.model_validate_json(path.read_text())


def test_phantoms_get_a_worklist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "phantoms"
    write_phantoms(folder, patients=3, seed=0, labelled=1, settings=PhantomSettings(rows=64, columns=64, slices=4))
    # The same scan under another patient's name, as a leak between splits would be.
    first = min((folder / "images").glob("patient002*"))
    shutil.copyfile(first, folder / "images" / "patient009_frame01.nii.gz")
    workspace = tmp_path / "w"
    command = ("select", folder / "images", "--labels", folder / "labels", "--n", 7, "--workspace", workspace)
    assert rfss(*command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Label these 7 slices next" in shown
    assert "span patients" in shown
    assert read_status(workspace).state == "finished"

    out = workspace / "selection"
    selection = read(out / "select.json")
    assert (selection.n, selection.objective, len(selection.chosen)) == (7, "mean", 7)
    assert selection.labelled_slices > 0
    assert [chosen.rank for chosen in selection.chosen] == list(range(1, 8))
    # Three patients without a label take turns.
    assert {chosen.patient for chosen in selection.chosen[:3]} == {"patient002", "patient003", "patient009"}
    assert selection.coverage[0].chosen == 0
    assert selection.coverage[-1].mean < min(selection.coverage[0].mean, selection.random_coverage[-1].mean)
    assert selection.duplicates is not None
    assert selection.duplicates.across_patients >= 4
    assert sum(len(case.slices) for case in selection.cases_to_label) == 7

    table = pd.read_csv(out / "select.csv")
    assert table["slice_id"].tolist() == [chosen.slice_id for chosen in selection.chosen]
    for row in table.itertuples():
        assert Path(row.source).is_file()
        assert (out / row.picture).read_bytes().startswith(b"\x89PNG")
    assert (out / "select-coverage.png").read_bytes().startswith(b"\x89PNG")
    pairs = pd.read_csv(out / "select-duplicates.csv")
    assert set(pairs.loc[pairs["across_patients"], "patient"]) >= {"patient002", "patient009"}

    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert rfss(*command) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_source_slice_is_where_a_viewer_finds_it(tmp_path: Path) -> None:
    # One bright slice in volumes that are stored upside down; what is far from all others is that slice.
    depth, bright = 5, 1
    for number in range(3):
        rng = np.random.default_rng(number)
        image = rng.normal(100, 5, (32, 32, depth))
        image[8:24, 8:24, bright] += 300
        save(tmp_path / "images" / f"sub-{number}.nii.gz", image.astype(np.int16), np.diag([1.0, 1.0, -6.0, 1.0]))
    code = rfss("select", tmp_path / "images", "--n", 3, "--out", tmp_path / "list.json", "--objective", "radius")
    assert code == 0
    selection = read(tmp_path / "list.json")
    assert (tmp_path / "list.csv").is_file()
    assert (tmp_path / "list-coverage.png").is_file()
    for chosen in selection.chosen:
        assert chosen.source_axis == 2
        assert chosen.source_slice == depth - 1 - chosen.slice
        volume = np.asarray(nib.load(chosen.source).dataobj)
        picture = volume[:, :, chosen.source_slice].max() > 250
        assert picture == (chosen.source_slice == bright)


@pytest.mark.slow
def test_label_reuses_what_select_embedded(cohort: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    places = (cohort / "images", "--labels", cohort / "labels", "--workspace", workspace)
    assert rfss("select", *places, "--n", 4, "--out", tmp_path / "out") == 0
    assert not (workspace / "selection").exists()
    records = {path: path.stat().st_mtime_ns for path in (workspace / "records" / "embed").rglob("*.json")}
    assert records
    options = ("--segmenter", "label-fusion", "--k", 3, "--held-out", 0.5, "--min-dice", 0)
    assert rfss("label", *places, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in (workspace / "records" / "embed").rglob("*.json")} == records
    chosen = read(tmp_path / "out" / "select.json").chosen
    assert {item.patient for item in chosen} == {"sub-12", "sub-13", "sub-14", "sub-15"}


def test_one_yaml_serves_label_and_select(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=3, labelled=1, depth=1)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"images: {cohort / 'images'}\nlabels: {cohort / 'labels'}\nworkspace: {tmp_path / 'w'}\n"
        "selection: {n: 3, objective: radius, spread: false, duplicate_distance: null}\n"
    )
    assert rfss("select", "--config", config, "--n", 2) == 0
    found = json.loads((tmp_path / "w" / "selection" / "select.json").read_text())
    assert (found["n"], found["objective"], found["spread"], found["duplicates"]) == (2, "radius", False, None)
    settings = load_settings({}, config)
    assert "selection" not in settings.scientific()


def test_without_workspace_and_labels_the_current_folder_gets_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=3, labelled=0, depth=2)
    # A broken file is set aside, not fatal.
    (cohort / "images" / "sub-77.nii.gz").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert rfss("select", cohort / "images", "--n", 6) == 0
    selection = read(tmp_path / "selection" / "select.json")
    assert (selection.slices, selection.labelled_slices, selection.quarantined) == (6, 0, 1)
    assert selection.coverage[-1].maximum == 0
    assert selection.chosen[0].distance is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{cohort}/images", "--n", "0"], "selection.n: "),
        (["{cohort}/images", "--n", "7"], "n is 7, but only 6 of 6 slices can be chosen"),
        (["{cohort}/images", "--n", "5", "--per-patient", "1"], "only 3 of 6 slices can be chosen with at most 1"),
        (["{cohort}/nowhere"], "nowhere"),
        (["{cohort}/images", "--labels", "{tmp}/none"], "none"),
        (["{tmp}/broken"], "unusable"),
        (["{tmp}/empty"], "empty"),
        (["{cohort}/images", "--objective", "best"], "best"),
        ([], "images is missing"),
        (["{cohort}/images", "--labels", "{cohort}/labels", "--n", "1"], "nothing is left to choose from"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=3, labelled=3 if "{cohort}/labels" in arguments else 0, depth=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.nii.gz").write_bytes(b"no image")
    places = [text.format(cohort=cohort, tmp=tmp_path) for text in arguments]
    assert rfss("select", *places, "--out", tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert message in shown.err.replace("\n", " ")
    assert "Traceback" not in shown.err + shown.out
    assert not (tmp_path / "out").exists()

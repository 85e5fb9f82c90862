"""A public data set's folder, converted, evaluated and labelled by the commands that the conversion prints."""

from __future__ import annotations

import json
from pathlib import Path

import layout_folders
import pytest

from flows.cli import main
from tasks.summary import read_summary


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_converted_then_evaluated_and_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = layout_folders.acdc(tmp_path, patients=5), tmp_path / "out"
    assert rfss("data", "convert", "auto", source, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "acdc: 8 labelled and 2 unlabelled images of 5 patients" in shown
    assert f"rfss evaluate --images {out}/images --labels {out}/labels --config {out}/settings.yaml" in shown
    places = ("--labels", out / "labels", "--config", out / "settings.yaml", "--segmenter", "label-fusion", "--k", 3)
    result = tmp_path / "result.json"
    assert rfss("evaluate", "--images", out / "images", *places, "--test-patients", 2, "--out", result) == 0
    assert set(json.loads(result.read_text())["dice"]) == {"RV", "Myo", "LV", "mean"}
    # Both frames of a patient are on one side.
    assert json.loads(result.read_text())["test_patients"] == 2
    assert {case["patient"] for case in json.loads(result.read_text())["per_case"]} < {
        f"patient{number:03d}" for number in range(1, 5)
    }
    more = ("--workspace", tmp_path / "w", "--held-out", 0.5, "--min-dice", 0, "--metadata", out / "metadata.csv")
    assert rfss("label", out / "images", *places, *more, "--match", "phase") == 0
    summary = read_summary(str(tmp_path / "w"))
    assert (summary.cases.labelled, summary.cases.unlabelled) == (8, 2)
    assert set(summary.held_out_dice) == {"RV", "Myo", "LV", "mean"}
    assert sorted(path.name for path in (tmp_path / "w" / "pseudo_labels").iterdir()) == [
        "patient005_frame01.nii.gz",
        "patient005_frame03.nii.gz",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["auto", "{tmp}/nowhere"], "nowhere"),
        (["auto", "{tmp}/empty"], "laid out like none of"),
        (["acdc", "{tmp}/empty"], "no file is named like patient001"),
        (["brats", "{tmp}/empty"], "no layout is known as 'brats'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert rfss("data", "convert", *given, "--out", tmp_path / "out") == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown
    assert len(shown.splitlines()) == 1

"""The command line: exit codes, one clear line on bad input, the commands' contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import save, write_cohort

from flows.cli import main
from tasks.status import read_status
from tasks.summary import read_summary


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def label(cohort: Path, workspace: Path, *more: object) -> int:
    options = ("--segmenter", "label-fusion", "--k", 3, "--held-out", 0.5, "--min-dice", 0)
    return rfss("label", cohort / "images", "--labels", cohort / "labels", "--workspace", workspace, *options, *more)


def test_label_then_status_export_and_the_gate(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "w"
    assert label(cohort, workspace) == 0
    shown = capsys.readouterr().out
    assert "accepted" in shown
    assert "Held-out quality of" in shown
    assert rfss("status", workspace) == 0
    assert "finished" in capsys.readouterr().out
    assert rfss("export", workspace, "--format", "nifti", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert "4 pseudo-label" in capsys.readouterr().out
    assert rfss("export", workspace, "--format", "nifti", "--out", tmp_path / "out") == 0
    assert "is there already" in capsys.readouterr().out
    for form in ("nnunet", "monai", "bids", "ome-zarr"):
        assert rfss("export", workspace, "--format", form, "--out", tmp_path / form, "--with-expert") == 0
        assert "4 pseudo-label, 12 expert" in capsys.readouterr().out
    for form, message in (("bids", "already holds another export"), ("dicom-seg", "comes from a DICOM series")):
        assert rfss("export", workspace, "--format", form, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert rfss("export", workspace, "--out", tmp_path / "none", "--decision", "reject") == 2
    assert "no case decided reject" in capsys.readouterr().err.replace("\n", " ")
    assert label(cohort, workspace, "--min-dice", 1, "--dataset", "strict") == 3
    assert "quality gate failed" in capsys.readouterr().out
    assert read_summary(str(workspace)).dataset.status == "rejected"


def test_a_url_is_a_workspace_for_every_command(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    url = f"memory://{tmp_path.name}/cli"
    options = ("--segmenter", "label-fusion", "--k", 3, "--held-out", 0.5, "--min-dice", 0)
    assert rfss("label", cohort / "images", "--labels", cohort / "labels", "--workspace", url, *options) == 0
    assert rfss("status", url) == 0
    assert "finished" in capsys.readouterr().out
    assert rfss("export", url, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
    assert not (tmp_path / "memory:").exists()


def test_settings_come_from_yaml_and_options_win(cohort: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"images: {cohort / 'images'}\nlabels: {cohort / 'labels'}\nworkspace: {tmp_path / 'w'}\nk: 2\n"
        "held_out: 0.5\nsegmentation: {segmenter: label-fusion}\nquality: {min_dice: 0}\n"
        "imaging: {classes: {1: wall, 2: core}}\n"
    )
    assert rfss("label", "--config", config, "--k", 4) == 0
    summary = read_summary(str(tmp_path / "w"))
    assert summary.k == 4
    assert set(summary.held_out_dice) == {"wall", "core", "mean"}


def test_evaluate_writes_its_contract(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "result.json"
    code = rfss(
        "evaluate", "--images", cohort / "images", "--labels", cohort / "labels", "--out", out, "--preset", "tiny",
        "--support-slices", 9, "--k", 3, "--strategy", "random", "--test-patients", 4, "--support-patients", 5,
        "--segmenter", "label-fusion", "--workspace", tmp_path / "w",
    )  # fmt: skip
    assert code == 0
    assert read_status(tmp_path / "w").state == "finished"
    result = json.loads(out.read_text())
    assert set(result["dice"]) == {"1", "2", "mean"} == set(result["hd95"])
    assert (result["support_slices"], result["support_patients"], result["test_patients"]) == (9, 5, 4)
    assert len(result["per_case"]) == 4
    assert result["slices_per_second"] > 0
    assert result["strategy"] == "random"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label"], "images is missing"),
        (["label", "{cohort}/images", "--labels", "{cohort}/labels"], "workspace is missing"),
        (["label", "{cohort}/nowhere", "--labels", "{cohort}/labels", "--workspace", "{tmp}/w"], "nowhere"),
        (["label", "{cohort}/images", "--labels", "{tmp}/none", "--workspace", "{tmp}/w"], "none"),
        (["label", "{cohort}/images", "--labels", "{tmp}/empty", "--workspace", "{tmp}/w"], "empty"),
        (["label", "{tmp}/empty", "--labels", "{cohort}/labels", "--workspace", "{tmp}/w"], "empty"),
        (["label", "{cohort}/images", "--labels", "{cohort}/labels", "--workspace", "{tmp}/taken"], "not an RFSS"),
        (["label", "{cohort}/images", "--labels", "x", "--workspace", "y", "--k", "0"], "k: "),
        (["label", "{cohort}/images", "--labels", "x", "--workspace", "y", "--held-out", "1.5"], "held_out: "),
        (["label", "{cohort}/images", "--labels", "x", "--workspace", "y", "--executor", "cloud"], "'cloud' is not an"),
        (["label", "{cohort}/images", "--labels", "x", "--workspace", "y", "--preset", "huge"], "huge"),
        (["label", "{cohort}/images", "--labels", "x", "--workspace", "y", "--patient-pattern", "("], "regular expr"),
        (["label", "--config", "{tmp}/no.yaml"], "no.yaml"),
        (["label", "--config", "{tmp}/broken.yaml"], "not valid YAML"),
        (["label", "--config", "{tmp}/odd.yaml"], "colour"),
        (["evaluate", "--images", "{cohort}/images"], "--labels"),
        (
            ["evaluate", "--images", "{cohort}/images", "--labels", "{cohort}/labels", "--out", "{tmp}/o.json",
             "--test-patients", "50"],
            "12 were found",
        ),
        (["status", "{tmp}/w"], "no RFSS workspace"),
        (["export", "{tmp}/w", "--out", "{tmp}/o"], "no RFSS workspace"),
        (["export", "nowhere", "--out", "{tmp}/o"], "no folder 'nowhere'"),
        (["export", "{tmp}/w"], "--out"),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--decision", "perhaps"], "perhaps"),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--format", "vtk"], "vtk"),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--ignore", "2"], "ignore: "),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--format", "nnunet", "--dataset-id", "1000"], "dataset_id: "),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--held-out-as-test"], "add --with-expert"),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--format", "dicom-seg", "--concepts", "{tmp}/no.yaml"], "no.yaml"),
        (["export", "{tmp}/w", "--out", "{tmp}/o", "--format", "dicom-seg", "--concepts", "{tmp}/broken.yaml"], "YAML"),
        (["export", "{tmp}/w", "--out", "o", "--format", "dicom-seg", "--concepts", "{tmp}/odd.yaml"], "lines such as"),
        (["frobnicate"], "frobnicate"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line_and_exit_code_2(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("do not touch")
    (tmp_path / "broken.yaml").write_text("k: [1")
    (tmp_path / "odd.yaml").write_text("colour: red")
    assert rfss(*(text.format(cohort=cohort, tmp=tmp_path) for text in arguments)) == 2
    shown = capsys.readouterr()
    assert message in shown.err.replace("\n", " ")
    assert "Traceback" not in shown.err + shown.out
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "do not touch"


def test_bad_cases_are_set_aside_and_the_rest_is_unharmed(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "c", patients=16, labelled=12)
    images, labels = folder / "images", folder / "labels"
    good = np.random.default_rng(0).normal(100, 10, (40, 40, 3)).astype(np.float32)
    whole = (images / "sub-12.nii.gz").read_bytes()
    (images / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    nan = good.copy()
    nan[3, 3, 1] = np.nan
    save(images / "nan.nii.gz", nan)
    save(images / "constant.nii.gz", np.full((40, 40, 3), 7, np.int16))
    save(images / "cine.nii.gz", np.zeros((8, 8, 3, 4), np.int16) + np.arange(4, dtype=np.int16))
    save(labels / "orphan.nii.gz", np.ones((4, 4, 4), np.uint8))
    save(images / "other shape.nii.gz", good)
    save(labels / "other shape.nii.gz", np.ones((9, 9, 3), np.uint8))
    save(images / "blank.nii.gz", good)
    save(labels / "blank.nii.gz", np.zeros((40, 40, 3), np.uint8))
    (images / "outside.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    save(tmp_path / "secret.nii.gz", good)
    save(images / "Zoë a..b 01.nii.gz", good)
    assert label(folder, tmp_path / "w") == 0
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    quarantine = pd.read_parquet(tmp_path / "w" / "manifest" / "quarantine.parquet")
    assert len(quarantine) == summary["cases"]["quarantined"]
    reasons = dict(zip(quarantine["name"], quarantine["reason"], strict=True))
    for name in ("truncated", "nan", "constant", "cine", "other shape", "blank"):
        assert any(key.startswith(name) for key in reasons), (name, reasons)
    assert any("orphan" in key for key in reasons)
    assert any("outside" in key for key in reasons)
    assert quarantine["message"].str.len().min() > 20
    produced = sorted(path.name for path in (tmp_path / "w" / "pseudo_labels").glob("*.nii.gz"))
    assert produced == ["Zoë a..b 01.nii.gz", *(f"sub-{number:02d}.nii.gz" for number in range(12, 16))]


def test_a_full_disk_is_one_line_and_the_run_goes_on_with_more_space(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        assert label(cohort, disk / "w") == 1
        shown = capsys.readouterr().err.replace("\n", " ")
        assert "space" in shown
        assert "Traceback" not in shown
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert label(cohort, disk / "w") == 0
        assert len(list((disk / "w" / "pseudo_labels").glob("*.nii.gz"))) == 4
    finally:
        # Lazily: MLflow keeps its sqlite file open as long as the process lives.
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_help_waits_for_no_library() -> None:
    """What a command needs is loaded when it is known which one: torch and pandas alone take seconds."""
    slow = "torch pandas scipy sklearn prefect mlflow dask distributed faiss zarr monai transformers nibabel pydicom"
    code = f"import sys, flows.cli; print(sorted(set({slow.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_doctor_says_that_this_installation_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert rfss("doctor") == 0
    assert "preset tiny segments a slice" in capsys.readouterr().out.replace("\n", " ")


def test_a_k_above_the_support_set_is_refused(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = rfss(
        "evaluate", "--images", cohort / "images", "--labels", cohort / "labels", "--out", tmp_path / "figures.json",
        "--support-slices", 9, "--k", 10, "--test-patients", 4,
    )  # fmt: skip
    assert code == 2
    assert "k is 10, but the support set has only 9 slices" in " ".join(capsys.readouterr().err.split())

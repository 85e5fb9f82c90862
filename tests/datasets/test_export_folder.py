"""An export is there whole or not at all, goes on after a stop, and never writes over another one."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from exports import CLASSES, case_of, file_source, label_map, set_of

from rfss_core.datasets.exporters import EXPORTERS, ExportCase, ExportReport, export_cases, read_manifest, verify_export
from rfss_core.digest import digest_file
from rfss_core.errors import CorruptStoreError, InputError
from rfss_core.settings import ExportSettings
from rfss_core.store import Workspace

FORMATS = ("nifti", "nnunet", "monai", "bids", "ome-zarr")


def export(cases: list[ExportCase], out: Path, form: str = "monai", done=lambda _: None, **changes) -> ExportReport:
    chosen = ExportSettings(format=form, **changes)
    return export_cases(set_of(cases), EXPORTERS[form](chosen), out, chosen, done)


@pytest.fixture
def cases(tmp_path: Path) -> list[ExportCase]:
    workspace = Workspace.open(tmp_path / "w")
    found = []
    for number in range(3):
        path = tmp_path / f"patient{number}.nii.gz"
        pixels = np.random.default_rng(number).integers(0, 99, (5, 4, 3), dtype=np.int16)
        nib.save(nib.Nifti1Image(pixels, np.diag([1.0, -2.0, 3.0, 1.0])), path)
        found.append(case_of(workspace, file_source(path, patient=f"patient{number}"), seed=number))
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("form", FORMATS)
def test_a_stopped_export_goes_on_and_ends_as_an_undisturbed_one(
    tmp_path: Path, cases: list[ExportCase], form: str
) -> None:
    undisturbed = export(cases, tmp_path / "whole", form)
    out = tmp_path / "out"

    def stop(case: ExportCase) -> None:
        if case.id == "patient1":
            raise Stopped

    with pytest.raises(Stopped):
        export(cases, out, form, stop)
    place = out / "Dataset501_hearts" if form == "nnunet" else out
    assert not place.exists()
    # Half a file of the case that was being written, and one that no longer is what its receipt says.
    partial_folder = next(place.parent.glob(".*.rfss-partial"))
    spoilt = sorted(
        path for path in partial_folder.rglob("*patient0*") if path.is_file() and ".rfss-work" not in str(path)
    )
    spoilt = spoilt or list((partial_folder / "sub-patient0").rglob("*.nii.gz"))
    if spoilt:
        spoilt[0].write_bytes(b"torn")
    (partial_folder / f".{'0' * 32}.partial").write_bytes(b"torn")
    again = export(cases, out, form)
    assert again.resumed == (1 if spoilt else 2)
    assert files_of(again.folder) == files_of(undisturbed.folder)
    assert not list(out.parent.glob(".out*"))
    assert not list(out.glob(".*partial"))


def test_kill_9_leaves_nothing_that_looks_whole(tmp_path: Path, cases: list[ExportCase]) -> None:
    code = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from exports import case_of, file_source, set_of
from rfss_core.datasets.exporters import EXPORTERS, export_cases
from rfss_core.settings import ExportSettings
from rfss_core.store import Workspace
tmp = pathlib.Path({str(tmp_path)!r})
workspace = Workspace.open(tmp / "other")
sources = [file_source(tmp / f"patient{{n}}.nii.gz", patient=f"patient{{n}}") for n in range(3)]
cases = [case_of(workspace, source, seed=n) for n, source in enumerate(sources)]
def kill(case):
    if case.id == "patient1":
        os.kill(os.getpid(), signal.SIGKILL)
chosen = ExportSettings(format="bids")
export_cases(set_of(cases), EXPORTERS["bids"](chosen), tmp / "out", chosen, kill)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "out").exists()
    assert export(cases, tmp_path / "out", "bids").resumed == 2
    assert files_of(tmp_path / "out") == files_of(export(cases, tmp_path / "whole", "bids").folder)


@pytest.mark.parametrize("form", FORMATS)
def test_the_manifest_knows_every_file(tmp_path: Path, cases: list[ExportCase], form: str) -> None:
    report = export(cases, tmp_path / "out", form)
    manifest = verify_export(report.folder)
    listed = {**manifest["files"], **{path: sha for case in manifest["cases"] for path, sha in case["files"].items()}}
    assert set(listed) == set(files_of(report.folder)) - {"rfss-export.json"}
    assert all(digest_file(report.folder / path) == sha for path, sha in listed.items())
    assert manifest["dataset"]["digest"] == "a" * 64


def test_the_same_export_is_left_alone_and_another_is_refused(tmp_path: Path, cases: list[ExportCase]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first = export(cases, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = export(cases, out)
    assert again.existed
    assert again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    relabelled = replace(cases[0], label_digest="f" * 64, read_labels=partial(label_map, (3, 4, 5), 77))
    for other in ({"form": "bids"}, {"ignore": 0.5}, {"cases": cases[:2]}, {"cases": [relabelled, *cases[1:]]}):
        with pytest.raises(InputError, match=r"already holds another export \(format monai of data set 'hearts'"):
            export(**{"cases": cases, "out": out, **other})
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_changed_and_missing_files_are_named(tmp_path: Path, cases: list[ExportCase]) -> None:
    report = export(cases, tmp_path / "out")
    (report.folder / "labelsTr" / "patient1.nii.gz").write_bytes(b"other")
    (report.folder / "dataset.json").unlink()
    with pytest.raises(CorruptStoreError, match=r"2 of 7 files .*: dataset\.json, labelsTr/patient1\.nii\.gz"):
        export(cases, tmp_path / "out")
    text = (report.folder / "rfss-export.json").read_text()
    (report.folder / "rfss-export.json").write_text(text.replace("pseudo-label", "expert"))
    with pytest.raises(CorruptStoreError, match="was altered"):
        read_manifest(report.folder)
    (report.folder / "rfss-export.json").write_text("[]")
    with pytest.raises(CorruptStoreError, match="is damaged"):
        read_manifest(report.folder)


def test_a_taken_folder_is_refused(tmp_path: Path, cases: list[ExportCase]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        export(cases, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("do not touch")
    with pytest.raises(InputError, match="holds other files"):
        export(cases, tmp_path / "full")
    with pytest.raises(InputError, match="cannot be made"):
        export(cases, tmp_path / "file" / "below")
    assert files_of(tmp_path / "full") == {"thesis.tex": b"do not touch"}


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path, cases: list[ExportCase]) -> None:
    work = tmp_path / ".out.rfss-partial" / ".rfss-work"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is exporting"):
            export(cases, tmp_path / "out")
    # What another export left unfinished here is not taken over.
    with pytest.raises(Stopped):
        export(cases, tmp_path / "out", "nifti", partial(_stop_after, "patient1"))
    report = export(cases, tmp_path / "out", "bids")
    assert report.resumed == 0
    assert not list(report.folder.glob("*.csv"))
    assert not (report.folder / "patient0.nii.gz").exists()
    assert [path.name for path in (report.folder / "sub-patient0").iterdir()] == ["anat"]


def test_one_case_is_in_memory_at_a_time(tmp_path: Path, cases: list[ExportCase]) -> None:
    order = []

    def noted(number: int) -> np.ndarray:
        order.append(f"read {number}")
        return label_map(cases[number].grid.canonical_shape, number)

    traced = [replace(case, read_labels=partial(noted, number)) for number, case in enumerate(cases)]
    export(traced, tmp_path / "out", done=lambda case: order.append(f"done {case.id[-1]}"))
    assert order == ["read 0", "done 0", "read 1", "done 1", "read 2", "done 2"]


def test_settings_that_contradict_each_other_are_refused() -> None:
    for changes, message in (
        ({"held_out_as_test": True}, "add --with-expert"),
        ({"format": "bids", "held_out_as_test": True, "with_expert": True}, "no test part"),
        ({"format": "monai", "dataset_id": 3}, "has no number"),
        ({"format": "bids", "concepts": {"RV": ("1", "99X", "y")}}, "no coded concepts"),
        ({"ignore": 0}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportSettings.model_validate(changes)
    assert ExportSettings(decisions=("reject", "accept")) == ExportSettings(decisions=("accept", "reject"))
    assert set(EXPORTERS) == {*FORMATS, "dicom-seg"}
    assert CLASSES


def _stop_after(name: str, case: ExportCase) -> None:
    if case.id == name:
        raise Stopped

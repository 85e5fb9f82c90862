"""What storage does to whole runs: damage, other runs, new and changed sources, an object store that fails."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohorts import VOTE, settings_for, write_cohort
from s3 import FlakyProxy, make_bucket

from flows.cli import main
from flows.label_dataset import label_dataset
from flows.session import terminal_listener
from rfss_core.datasets import read_dataset
from rfss_core.errors import WorkspaceBusyError, WorkspaceLostError
from rfss_core.events import Event, StageStarted
from rfss_core.settings import LabelSettings
from rfss_core.store import Files, Workspace
from rfss_core.store.lease import read_lease, take
from tasks.status import read_status

DEPTH = 4
"""Slices of a case: few, and yet several chunks."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of several chunks."""
    return write_cohort(tmp_path_factory.mktemp("deep"), patients=14, labelled=9, depth=DEPTH, side=32)


@pytest.fixture(scope="module")
def done(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run and the digest of its data set; tests work on copies."""
    workspace = tmp_path_factory.mktemp("done") / "w"
    return workspace, label_dataset(voting(deep, workspace)).dataset.digest


def voting(cohort: Path, workspace: Path, **changes: object) -> LabelSettings:
    return settings_for(cohort, workspace, segmentation=VOTE, **changes)


def written(workspace: Path) -> dict[str, int]:
    """Return when each record and each output of a stage was last written."""
    roots = (workspace / "records", workspace / "stages", workspace / "images")
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(workspace).as_posix(): path.stat().st_mtime_ns for path in files}


def touched(before: dict[str, int], after: dict[str, int], stage: str) -> set[str]:
    """Return the records of a stage that are new or were written again."""
    return {path for path, when in after.items() if path.startswith(f"records/{stage}/") and before.get(path) != when}


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def test_flipped_bytes_are_found_and_only_their_chunks_done_again(
    done: tuple[Path, str], deep: Path, tmp_path: Path
) -> None:
    source, digest = done
    workspace = tmp_path / "w"
    shutil.copytree(source, workspace, copy_function=shutil.copy2)
    mask = min((workspace / "stages" / "segment").rglob("labels/c.0.0.0"))
    image = workspace / "images" / "sub-03" / "0" / "c" / "0" / "0" / "0"
    label = min((workspace / "datasets").rglob("*.nii.gz"))
    for path in (mask, image, label):
        flip_a_byte(path)
    before = written(workspace)
    again = label_dataset(voting(deep, workspace, execution={"verify": True}))
    after = written(workspace)
    assert again.dataset.digest == digest
    assert touched(before, after, "segment") == {
        f"records/segment/{mask.relative_to(workspace / 'stages' / 'segment').parts[0]}/{mask.parts[-4]}.json"
    }
    assert touched(before, after, "ingest") == {"records/ingest/images/sub-03.json"}
    assert len(touched(before, after, "publish")) == 1
    assert touched(before, after, "embed") == set()
    store = Workspace.open(workspace)
    assert all(store.verify_case(case_id) == [] for case_id in store.ingest_records())


def test_a_second_run_is_refused_and_status_works_meanwhile(
    done: tuple[Path, str], deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(done[0], workspace)
    with take(Files(workspace), 30.0, "rfss label first"):
        with pytest.raises(WorkspaceBusyError):
            label_dataset(voting(deep, workspace))
        # What Prefect's UI says of a nightly run that meets another one.
        state = label_dataset(voting(deep, workspace), return_state=True)
        assert state.name == "Failed: workspace busy"
        assert "is in use by 'rfss label first'" in str(state.message)
        assert read_status(workspace).state == "running"
        with pytest.raises(SystemExit) as ended:
            main(["label", str(deep / "images"), "--labels", str(deep / "labels"), "--workspace", str(workspace)])
        assert ended.value.code == 1
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "is in use by 'rfss label first' on " in line
        assert "rfss status" in line
    main_status = read_status(workspace)
    assert main_status.state == "finished"
    assert main_status.owner is not None
    assert main_status.owner.command == "rfss label first"
    assert all(stage.finished and stage.left_s == 0 for stage in main_status.stages)


def test_a_run_whose_workspace_was_taken_stops(done: tuple[Path, str], deep: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(done[0], workspace)
    files = Files(workspace)
    seen: list[str] = []

    def taken_meanwhile(event: Event) -> None:
        if isinstance(event, StageStarted):
            seen.append(event.stage)
            if event.stage == "embed":
                number, mine = read_lease(files) or pytest.fail("no lease")
                other = {**asdict(mine), "owner": "another", "command": "rfss label elsewhere"}
                assert files.create(f"lease/{number + 1:08d}.json", json.dumps(other).encode())
                time.sleep(0.5)

    token = terminal_listener.set(taken_meanwhile)
    try:
        with pytest.raises(WorkspaceLostError, match="taken over by 'rfss label elsewhere'"):
            label_dataset(voting(deep, workspace, execution={"lease_s": 0.6}))
    finally:
        terminal_listener.reset(token)
    assert seen == ["ingest", "embed"]
    assert json.loads(files.read_bytes("state.json"))["state"] == "running"
    assert (read_lease(files) or pytest.fail("no lease"))[1].owner == "another"


@pytest.mark.slow
def test_sources_that_come_change_and_go(done: tuple[Path, str], deep: Path, tmp_path: Path) -> None:
    workspace, cohort = tmp_path / "w", tmp_path / "cohort"
    shutil.copytree(done[0], workspace, copy_function=shutil.copy2)
    shutil.copytree(deep, cohort)
    settings = voting(cohort, workspace)
    before = written(workspace)

    shutil.copy(write_cohort(tmp_path / "more", 15, 0, DEPTH, 32) / "images" / "sub-14.nii.gz", cohort / "images")
    summary = label_dataset(settings)
    assert (summary.sources.added, summary.sources.changed, summary.sources.removed) == (1, [], [])
    assert summary.cases.unlabelled == 6
    after = written(workspace)
    assert {path: when for path, when in after.items() if path in before} == before
    # A new case joins a chunk, or splits one: its neighbours' work is done again, under another name.
    assert len(touched(before, after, "embed")) <= 2
    assert len(touched(before, after, "segment")) <= 2
    assert touched(before, after, "ingest") == {"records/ingest/images/sub-14.json"}

    changed = cohort / "images" / "sub-12.nii.gz"
    image = nib.load(changed)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine, image.header), changed)
    (cohort / "images" / "sub-13.nii.gz").unlink()
    before = after
    summary = label_dataset(settings)
    assert (summary.sources.added, summary.sources.changed, summary.sources.removed) == (0, ["sub-12"], ["sub-13"])
    assert any("1 sources of the last run are gone: sub-13" in note for note in summary.warnings)
    folder = workspace / (workspace / "datasets" / "latest").read_text().strip()
    assert {entry.name for entry in read_dataset(folder).entries} == {f"sub-{n:02d}" for n in (9, 10, 11, 12, 14)}
    assert not (workspace / "pseudo_labels" / "sub-13.nii.gz").exists()
    after = written(workspace)
    assert touched(before, after, "ingest") == {"records/ingest/images/sub-12.json"}
    assert len(touched(before, after, "segment")) <= 3
    summary = label_dataset(settings)
    assert (summary.sources.added, summary.sources.changed, summary.sources.removed) == (0, [], [])


@pytest.mark.slow
def test_settings_and_labels_redo_what_depends_on_them(done: tuple[Path, str], deep: Path, tmp_path: Path) -> None:
    workspace, cohort = tmp_path / "w", tmp_path / "cohort"
    shutil.copytree(done[0], workspace, copy_function=shutil.copy2)
    shutil.copytree(deep, cohort)
    before = written(workspace)

    label_dataset(voting(cohort, workspace, execution={"lease_s": 60.0, "threads": 1}))
    assert written(workspace) == before

    label_dataset(voting(cohort, workspace, quality={"min_dice": 0.1, "bootstrap": 200}))
    after = written(workspace)
    assert {path.split("/")[1] for path in after.keys() - before.keys() if path.startswith("records/")} == {"publish"}

    before = after
    label_dataset(voting(cohort, workspace, k=4))
    after = written(workspace)
    n_chunks = len({path for path in before if path.startswith("records/segment/")})
    assert len(touched(before, after, "segment")) == n_chunks
    assert touched(before, after, "embed") == touched(before, after, "ingest") == set()

    before = after
    support = min(read_support(workspace))
    file = cohort / "labels" / f"{support}.nii.gz"
    label = nib.load(file)
    nib.save(
        nib.Nifti1Image(np.where(np.asarray(label.dataobj) == 2, 1, label.dataobj), label.affine, label.header), file
    )
    summary = label_dataset(voting(cohort, workspace))
    after = written(workspace)
    assert summary.sources.changed == [support]
    assert touched(before, after, "ingest") == {f"records/ingest/images/{support}.json"}
    assert len(touched(before, after, "segment")) == n_chunks
    # A chunk's name holds its sources' digests, labels among them, so the case's own chunk is embedded again.
    assert len(touched(before, after, "embed")) == 1


def read_support(workspace: Path) -> set[str]:
    [record] = (workspace / "records" / "index").rglob("support.json")
    table = Workspace.open(workspace).stage("index", record.parent.name).read_table("support", "slices")
    return set(table["case_id"])


@pytest.mark.slow
def test_a_whole_run_on_an_object_store_that_fails_a_fifth_of_all_calls(
    done: tuple[Path, str], deep: Path, tmp_path: Path, proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    url = f"{make_bucket(proxy.port)}/project"
    settings = voting(deep, tmp_path).model_copy(update={"workspace": url})
    proxy.share = 0.2
    summary = label_dataset(settings)
    assert proxy.failed > 200
    assert summary.dataset.digest == done[1]
    proxy.share = 0.0
    files = Files(url)
    for local in (done[0] / "pseudo_labels").glob("*.nii.gz"):
        assert files.read_bytes(f"pseudo_labels/{local.name}") == local.read_bytes()
    assert files.exists(summary.report)

    # A start again looks records up by name.
    proxy.requests.clear()
    assert label_dataset(settings).dataset.digest == done[1]
    assert not [path for method, path in proxy.requests if method == "GET" and "prefix=project/records" in path]
    assert not [path for method, path in proxy.requests if method == "PUT" and "/project/stages/" in path]
    assert read_status(url).state == "finished"

    stage = next(name for name in files.names("stages/segment"))
    [chunk, *_] = files.names(f"stages/segment/{stage}")
    case = next(name for name in files.names(f"stages/segment/{stage}/{chunk}") if not name.endswith(".parquet"))
    path = f"stages/segment/{stage}/{chunk}/{case}/labels/c.0.0.0"
    data = bytearray(files.read_bytes(path))
    data[len(data) // 2] ^= 1
    files.write_bytes(path, bytes(data))
    verified = label_dataset(
        settings.model_copy(update={"execution": settings.execution.model_copy(update={"verify": True})})
    )
    assert verified.dataset.digest == done[1]
    assert files.read_bytes(path) != bytes(data)

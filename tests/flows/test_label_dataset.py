"""The main job, end to end, with the real models, Zarr, FAISS, Dask, Prefect and MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohorts import VOTE, settings_for
from mlflow import MlflowClient
from mlflow.data import get_source
from prefect.client.orchestration import get_client

from flows.label_dataset import label_dataset
from rfss_core.datasets import read_dataset
from rfss_core.errors import GateError, InputError, LeakError, SettingsError, TooManyQuarantinedError
from rfss_core.settings import ExportSettings
from rfss_core.store import Workspace
from tasks.export import export_dataset
from tasks.status import read_status
from tasks.summary import Summary, read_summary


@pytest.fixture(scope="module")
def done(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """One run of the real models that the tests below look at."""
    workspace = tmp_path_factory.mktemp("inline")
    return workspace, label_dataset(settings_for(cohort, workspace))


def masks_of(workspace: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workspace / "pseudo_labels").glob("*.nii.gz"))}


def test_summary_counts_everything_once(done: tuple[Path, Summary]) -> None:
    workspace, summary = done
    assert summary.cases.model_dump() == {
        "labelled": 12,
        "support": 6,
        "held_out": 6,
        "unlabelled": 4,
        "quarantined": 0,
        "reviewed": 0,
    }
    assert summary.slices == 16 * 3
    assert set(summary.held_out_dice) == {"1", "2", "mean"} == set(summary.held_out_hd95)
    assert all(part.n == 6 for part in summary.held_out_dice.values())
    assert sum(summary.decisions.model_dump().values()) == 4
    assert summary.seconds["total"] >= sum(value for stage, value in summary.seconds.items() if stage != "total")
    assert set(summary.seconds) == {
        "ingest",
        "embed",
        "index",
        "segment",
        "assess",
        "quality",
        "publish",
        "register",
        "total",
    }
    assert read_summary(str(workspace)) == summary
    assert (workspace / summary.report).is_file()


def test_quality_is_on_record_and_uncertain_voxels_can_be_ignored(done: tuple[Path, Summary], tmp_path: Path) -> None:
    workspace, summary = done
    folder = workspace / "quality"
    cases, slices, held_out = (pd.read_parquet(folder / f"{name}.parquet") for name in ("cases", "slices", "held_out"))
    assert cases["decision"].value_counts().sum() == 4
    assert {"1.predicted", "2.lower"} <= set(cases.columns)
    assert len(slices) == 4 * 3
    assert sum(summary.slice_decisions.model_dump().values()) == slices["decision"].notna().sum()
    # Six cases by volume and three slices, two classes.
    assert len(held_out) == 6 * 4 * 2
    assert held_out["surface_dice"].between(0, 1).all()
    document = json.loads((folder / "quality.json").read_text())
    assert document["acceptance"][-1]["accepted"] == 1
    assert document["voxels"][0]["ignored"] == 1
    assert {row["name"] for row in document["signals"]} == {row.name for row in summary.signals} > {"stability"}
    assert set(summary.held_out_metrics) == {"iou", "surface_distance", "surface_dice", "volume_difference"}

    report = export_dataset(workspace, tmp_path / "all", ExportSettings(ignore=0.5, decisions=("accept", "review")))
    exported = read_dataset(tmp_path / "all")
    assert report.count("pseudo-label") == len(exported.entries)
    assert exported.classes[3] == "ignore"
    changed = 0
    for entry in exported.entries:
        ours = np.asarray(nib.load(workspace / "pseudo_labels" / entry.label_path).dataobj)
        theirs = np.asarray(nib.load(tmp_path / "all" / entry.label_path).dataobj)
        assert (ours == theirs)[theirs != 3].all()
        changed += int((theirs == 3).sum())
    assert changed > 0


def test_an_export_holds_what_was_published_and_the_experts_cases(
    done: tuple[Path, Summary], cohort: Path, tmp_path: Path
) -> None:
    workspace, summary = done
    every = ("accept", "review", "reject")
    export_dataset(workspace, tmp_path / "tree", ExportSettings(decisions=every, with_expert=True))
    for name, data in masks_of(workspace).items():
        assert (tmp_path / "tree" / name).read_bytes() == data
    for path in (cohort / "labels").iterdir():
        ours, expert = nib.load(tmp_path / "tree" / path.name), nib.load(path)
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(expert.dataobj))
        assert np.array_equal(ours.affine, expert.affine)
    chosen = ExportSettings(format="nnunet", decisions=every, with_expert=True, held_out_as_test=True, ignore=0.5)
    report = export_dataset(workspace, tmp_path / "raw", chosen)
    assert report.folder.name == "Dataset501_ellipses"
    document = json.loads((report.folder / "dataset.json").read_text())
    assert document["numTraining"] == summary.cases.support + summary.cases.unlabelled
    assert document["labels"] == {"background": 0, "1": 1, "2": 2, "ignore": 3}
    held_out = {path.name.removesuffix(".nii.gz") for path in (report.folder / "labelsTs").iterdir()}
    measured = pd.read_parquet(workspace / "quality" / "held_out.parquet")
    assert held_out == set(measured["case_id"])
    # An expert's label map is certain: no voxel of it is ignored.
    for name in held_out:
        assert set(np.unique(nib.load(report.folder / "labelsTs" / f"{name}.nii.gz").dataobj)) <= {0, 1, 2}


def test_pseudo_labels_lie_on_their_sources_grid(done: tuple[Path, Summary], cohort: Path) -> None:
    workspace, _ = done
    names = sorted(path.name for path in (workspace / "pseudo_labels").glob("*.nii.gz"))
    assert names == [f"sub-{number:02d}.nii.gz" for number in range(12, 16)]
    for name in names:
        ours, source = nib.load(workspace / "pseudo_labels" / name), nib.load(cohort / "images" / name)
        assert ours.shape == source.shape
        assert np.array_equal(ours.affine, source.affine)
        for code in ("sform_code", "qform_code"):
            assert ours.header[code] == source.header[code]
        assert set(np.unique(ours.dataobj)) <= {0, 1, 2}


def test_no_held_out_or_own_patient_ever_serves_as_support(done: tuple[Path, Summary]) -> None:
    workspace, summary = done
    files = sorted((workspace / "stages" / "segment").rglob("slices.parquet"))
    rows = pd.concat([pd.read_parquet(path) for path in files])
    queries = set(rows["case_id"])
    supports = {name.split(":")[0] for ids in rows["support_ids"] for name in ids}
    assert len(queries) == summary.cases.unlabelled + summary.cases.held_out
    assert len(supports) <= summary.cases.support
    assert not queries & supports
    assert len(rows) == len(queries) * 3 * 2
    assert rows["predicted_iou"].notna().all()


def test_the_run_and_its_data_set_are_in_mlflow(done: tuple[Path, Summary]) -> None:
    workspace, summary = done
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    run = client.get_run(str(summary.mlflow_run_id))
    assert run.data.metrics["held_out_dice.mean"] == pytest.approx(summary.held_out_dice["mean"].mean)
    assert run.data.params["k"] == "3"
    assert run.data.metrics["throughput.segment.slices_per_second"] > 0
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"dataset", "report", "summary", "manifest", "environment"} <= artifacts
    inputs = {tag.value: item for item in run.inputs.dataset_inputs for tag in item.tags}
    logged, support = inputs["pseudo-labels"], inputs["support"]
    assert len(get_source(support).load()) == 6 * 3
    assert (logged.dataset.name, logged.dataset.source_type) == ("ellipses", "rfss")
    assert summary.dataset.digest.startswith(logged.dataset.digest)
    manifest = get_source(logged).load()
    assert manifest.digest == summary.dataset.digest
    version = client.get_model_version_by_alias("rfss-dataset.ellipses", "candidate")
    assert str(version.version) == summary.dataset.version


@pytest.mark.slow
@pytest.mark.invariant
def test_dask_workers_give_the_same_pseudo_labels(done: tuple[Path, Summary], cohort: Path, tmp_path: Path) -> None:
    workspace, summary = done
    settings = settings_for(cohort, tmp_path / "local", execution={"executor": "local", "workers": 2})
    other = label_dataset(settings)
    assert other.fingerprint == summary.fingerprint
    assert other.dataset.digest == summary.dataset.digest
    assert masks_of(tmp_path / "local") == masks_of(workspace)


def test_the_same_command_again_does_nothing_twice(cohort: Path, tmp_path: Path) -> None:
    settings = settings_for(cohort, tmp_path, segmentation=VOTE)
    first = label_dataset(settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*") if path.is_file()}
    second = label_dataset(settings)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*") if path.is_file()}
    assert after == before
    assert (second.dataset, second.fingerprint) == (first.dataset, first.fingerprint)
    assert second.mlflow_run_id == first.mlflow_run_id
    status = read_status(tmp_path)
    assert status.state == "finished"
    assert all(stage.done == stage.total for stage in status.stages if stage.name in ("embed", "segment", "publish"))


def test_new_images_are_labelled_without_touching_the_old(cohort: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cohort, tmp_path / "cohort")
    moved = copy / "images" / "sub-15.nii.gz"
    moved.rename(tmp_path / "later.nii.gz")
    settings = settings_for(copy, tmp_path / "w", segmentation=VOTE)
    assert label_dataset(settings).cases.unlabelled == 3
    before = masks_of(tmp_path / "w")
    (tmp_path / "later.nii.gz").rename(moved)
    again = label_dataset(settings)
    assert again.cases.unlabelled == 4
    after = masks_of(tmp_path / "w")
    assert {name: data for name, data in after.items() if name in before} == before
    assert again.dataset.version == "2"


def test_a_workspace_need_not_be_a_folder(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}/w"
    settings = settings_for(cohort, tmp_path, segmentation=VOTE).model_copy(update={"workspace": url})
    with pytest.raises(SettingsError, match="set MLFLOW_TRACKING_URI"):
        label_dataset(settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    summary = label_dataset(settings)
    assert read_summary(url) == summary
    local = label_dataset(settings_for(cohort, tmp_path / "local", segmentation=VOTE))
    assert local.dataset.digest == summary.dataset.digest
    files = Workspace.open(url).files
    for name, data in masks_of(tmp_path / "local").items():
        assert files.read_bytes(f"pseudo_labels/{name}") == data


def test_a_failed_gate_records_everything_and_promotes_nothing(cohort: Path, tmp_path: Path) -> None:
    settings = settings_for(cohort, tmp_path, segmentation=VOTE, quality={"min_dice": 1.0, "bootstrap": 200})
    with pytest.raises(GateError, match=r"mean Dice over classes .* is below 1"):
        label_dataset(settings)
    summary = read_summary(str(tmp_path))
    assert summary.dataset.status == "rejected"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_registered_model("rfss-dataset.ellipses").aliases == {}
    folder = tmp_path / Workspace.open(tmp_path).files.read_bytes("datasets/latest").decode().strip()
    assert len(read_dataset(folder).entries) == 4
    with get_client(sync_client=True) as prefect:
        newest = max(prefect.read_flow_runs(), key=lambda run: run.created)
    assert newest.state is not None
    assert newest.state.type.value == "FAILED"
    assert "is below 1" in (newest.state.message or "")


def test_the_ui_gets_progress_a_table_and_a_summary(done: tuple[Path, Summary]) -> None:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as prefect:
        for key in ("rfss-segment", "rfss-held-out", "rfss-summary"):
            found = prefect.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
            assert found, key
            if key == "rfss-segment":
                assert any(item.data == 100.0 for item in found)


def test_a_set_that_is_labelled_already_has_nothing_to_label(cohort: Path, tmp_path: Path) -> None:
    labelled = shutil.copytree(cohort, tmp_path / "cohort")
    for number in range(12, 16):
        (labelled / "images" / f"sub-{number:02d}.nii.gz").unlink()
    with pytest.raises(InputError, match="nothing is left to label"):
        label_dataset(settings_for(labelled, tmp_path / "w"))


def test_a_copy_of_a_held_out_image_in_the_support_set_is_caught(cohort: Path, tmp_path: Path) -> None:
    leaky = shutil.copytree(cohort, tmp_path / "cohort")
    for part in ("images", "labels"):
        for number in range(12):
            shutil.copy(leaky / part / f"sub-{number:02d}.nii.gz", leaky / part / f"sub-{number + 50}.nii.gz")
    with pytest.raises(LeakError, match=r"has the very pixels of 'sub-.*more test cases have copies there"):
        label_dataset(settings_for(leaky, tmp_path / "w"))
    assert not (tmp_path / "w" / "stages" / "embed").exists()


def test_too_much_bad_input_ends_the_run(cohort: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(cohort, tmp_path / "cohort")
    for number in range(10):
        (broken / "images" / f"sub-{number:02d}.nii.gz").write_bytes(b"not an image")
    with pytest.raises(TooManyQuarantinedError, match="10 of 16 inputs are unusable"):
        label_dataset(settings_for(broken, tmp_path / "w"))

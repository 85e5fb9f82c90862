"""Every segmenter of ``rfss evaluate`` on the same splits, and none of the baselines in ``rfss label``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import settings_for

from flows.cli import main
from flows.evaluate import Evaluation, evaluate
from flows.label_dataset import label_dataset
from rfss_core.errors import SettingsError
from rfss_core.settings import SegmentationSettings, load_settings
from rfss_core.store import Workspace


def rfss(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


FAST = {"width": 4, "steps": 8, "round_steps": 4}


def run(
    cohort: Path, workspace: Path, execution: dict[str, object] | None = None, **segmentation: object
) -> Evaluation:
    settings = settings_for(
        cohort, workspace, segmentation=segmentation, training=FAST, seed=3, execution=execution or {}
    )
    return evaluate(settings, test_patients=3, support_patients=4)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


def supports_of(workspace: Path) -> set[tuple[str, ...]]:
    return {tuple(pd.read_parquet(path)["slice_id"]) for path in (workspace / "stages" / "index").rglob("*.parquet")}


def test_all_segmenters_share_support_and_test_patients(cohort: Path, shared: Path) -> None:
    results = {
        name: run(cohort, shared, **options)
        for name, options in {
            "label-fusion": {"segmenter": "label-fusion"},
            "unet": {"segmenter": "unet"},
            "one": {"segmenter": "sam2-points"},
            "four": {"segmenter": "sam2-points", "points": "2,2"},
        }.items()
    }
    assert len({tuple(case.case for case in result.per_case) for result in results.values()}) == 1
    assert len(supports_of(shared)) == 1
    assert {name: result.points for name, result in results.items()} == {
        "label-fusion": None,
        "unet": None,
        "one": (1, 0),
        "four": (2, 2),
    }
    # The floor beside every method is the same vote of the same masks.
    assert len({json.dumps(result.label_fusion_dice) for result in results.values()}) == 1
    assert results["label-fusion"].dice == results["label-fusion"].label_fusion_dice
    digests = {result.models["segmentation"] for result in results.values()}
    assert len(digests) == 4
    assert "train" in results["unet"].seconds


def test_a_network_is_trained_once_and_by_its_settings(cohort: Path, shared: Path) -> None:
    first = run(cohort, shared, segmenter="unet")
    files = {path: path.stat().st_mtime_ns for path in (shared / "stages" / "train").rglob("*") if path.is_file()}
    assert files
    second = run(cohort, shared, segmenter="unet")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (second.dice, second.models) == (first.dice, first.models)
    settings = settings_for(cohort, shared, segmentation={"segmenter": "unet"}, training={**FAST, "steps": 9}, seed=3)
    other = evaluate(settings, test_patients=3, support_patients=4)
    assert other.models["segmentation"] != first.models["segmentation"]
    records = Workspace.open(shared).files.names("records/train")
    assert len(records) == 2


def test_a_network_without_a_sound_record_is_trained_again(cohort: Path, shared: Path) -> None:
    first = run(cohort, shared, segmenter="unet")
    for record in (shared / "records" / "train").rglob("*.json"):
        record.write_text("{")
    again = run(cohort, shared, segmenter="unet")
    assert again.models == first.models
    assert again.dice == first.dice


@pytest.mark.slow
@pytest.mark.invariant
def test_workers_load_the_network_and_give_the_same_masks(cohort: Path, shared: Path) -> None:
    inline = run(cohort, shared, segmenter="unet")
    shutil.rmtree(shared / "records" / "segment")
    execution = {"executor": "local", "workers": 2, "threads": 1}
    local = run(cohort, shared, segmenter="unet", execution=execution)
    assert local.models == inline.models
    assert local.per_case == inline.per_case


def test_more_points_than_none_are_needed() -> None:
    for given, expected in ((1, (1, 0)), ("2", (2, 0)), ("1,1", (1, 1)), ([2, 2], (2, 2))):
        assert SegmentationSettings(segmenter="sam2-points", points=given).points == expected
    for given in ("0", "1,-1", "a", "1,1,1", ""):
        with pytest.raises(SettingsError, match="POSITIVE"):
            load_settings(
                {"images": "i", "labels": "l", "workspace": "w"}
                | {"segmentation": {"segmenter": "sam2-points", "points": given}}
            )
    with pytest.raises(SettingsError, match="belong to segmenter sam2-points, not to unet"):
        load_settings(
            {"images": "i", "labels": "l", "workspace": "w"} | {"segmentation": {"segmenter": "unet", "points": "1"}}
        )


def test_training_settings_are_no_part_of_other_segmenters_fingerprint(tmp_path: Path) -> None:
    def scientific(segmenter: str, steps: int) -> object:
        settings = settings_for(tmp_path, tmp_path, segmentation={"segmenter": segmenter}, training={"steps": steps})
        return settings.scientific()

    assert scientific("sam2-memory", 10) == scientific("sam2-memory", 20)
    assert scientific("unet", 10) != scientific("unet", 20)


@pytest.mark.parametrize("segmenter", ["sam2-points", "unet"])
def test_baselines_never_label(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], segmenter: str
) -> None:
    arguments = ("label", cohort / "images", "--labels", cohort / "labels", "--workspace", tmp_path / "w")
    assert rfss(*arguments, "--segmenter", segmenter) == 2
    assert "measure the baseline with `rfss evaluate`" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "w").exists()
    with pytest.raises(SettingsError, match="is a baseline and labels nothing"):
        label_dataset(settings_for(cohort, tmp_path / "w", segmentation={"segmenter": segmenter}))


def test_points_are_an_option_of_evaluate(cohort: Path, shared: Path, tmp_path: Path) -> None:
    code = rfss(
        "evaluate", "--images", cohort / "images", "--labels", cohort / "labels", "--out", tmp_path / "o.json",
        "--k", 2, "--test-patients", 2, "--workspace", shared, "--segmenter", "sam2-points", "--points", "1,1",
    )  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["points"] == [1, 1]
    assert np.isfinite(result["dice"]["mean"])

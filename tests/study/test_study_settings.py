"""Studies as YAML: what they say, what they write out to, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.study import Plan, load_study, plan_study, shipped_studies

PLACES = {"images": "i", "labels": "l"}


def study_file(folder: Path, **content: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"methods": [{"name": "RFSS", "k": 4}], **content}))
    return str(path)


def plan(folder: Path, **content: object) -> Plan:
    return plan_study(load_study(study_file(folder, **content), PLACES), str(folder / "w"))


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_can_be_planned(name: str, tmp_path: Path) -> None:
    study = load_study(name, PLACES)
    found = plan_study(study, str(tmp_path))
    assert study.name == name
    assert len(found.rows) == len(found.labels) * len(study.seeds)
    assert len(study.seeds) >= (2 if name == "quick" else 3)
    assert all(row.command(Path("FILE.yaml")).startswith("rfss evaluate --images i --labels l") for row in found.rows)


def test_lists_are_dimensions_and_name_the_rows(tmp_path: Path) -> None:
    methods = [
        {"name": "A", "strategy": ["random", "dino"], "k": [2, 4]},
        {"name": "B", "segmenter": "unet", "k": [2, 4], "support_patients": [1, "all"]},
        {"name": "C", "segmenter": "sam2-points", "points": "2,1", "settings": {"embedding": {"batch_size": 8}}},
    ]
    found = plan(tmp_path, methods=methods, seeds=[5, 7])
    assert found.labels == [
        "A, random, k = 2", "A, random, k = 4", "A, dino, k = 2", "A, dino, k = 4", "B, 1 patients", "B, all patients",
        "C",
    ]  # fmt: skip
    assert [row.seed for row in found.rows] == [5] * 7 + [7] * 7
    last = found.rows[-1]
    assert last.settings.segmentation.points == (2, 1)
    assert last.settings.embedding.batch_size == 8
    assert "--points 2,1" in last.command(Path("x.yaml"))
    assert "--config x.yaml" in last.command(Path("x.yaml"))
    assert yaml.safe_load(last.config()) == {"embedding": {"batch_size": 8}}


def test_all_slices_and_patients_reach_the_settings(tmp_path: Path) -> None:
    row = plan(tmp_path, support_slices="all", support_patients="all").rows[0]
    assert row.settings.retrieval.support_slices is None
    assert row.support_patients is None
    assert "--support-slices 0" in row.command(None)


def test_fingerprints_tell_what_matters(tmp_path: Path) -> None:
    def fingerprint(data: str = "d", **content: object) -> str:
        return plan(tmp_path, seeds=[0], **content).rows[0].fingerprint(data)

    same = fingerprint()
    assert same == fingerprint(title="another heading", claims=[])
    others = {
        fingerprint("e"),
        fingerprint(test_patients=4),
        fingerprint(support_patients=2),
        fingerprint(support_slices=40),
        fingerprint(methods=[{"name": "RFSS", "k": 5}]),
        fingerprint(settings={"segmentation": {"use_object_pointers": False}}),
    }
    assert len(others) == 6
    assert same not in others


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"methods": []}, "methods"),
        ({"methods": [{"name": "A", "k": 0}]}, "numbers start at 1"),
        ({"methods": [{"name": "A"}, {"name": "A"}]}, "two methods are called 'A'"),
        ({"methods": [{"name": "A", "settings": {"imaging": {}}}]}, "cannot differ between methods"),
        ({"methods": [{"name": "A", "segmenter": "magic"}]}, "segmenter"),
        ({"methods": [{"name": "A", "k": 60}]}, "k is 60, but the support set has only 50 slices"),
        ({"methods": [{"name": "A", "points": 1}]}, "row 'A'.*points belong to segmenter sam2-points"),
        ({"methods": [{"name": "A", "settings": {"retrieval": {"no": 1}}}]}, "row 'A'.*retrieval.no"),
        ({"settings": {"k": 3}}, "'k' has a place of its own"),
        ({"seeds": [1, 1]}, "seeds are distinct"),
        ({"support_patients": 0}, "numbers start at 1"),
        ({"unknown": 1}, "unknown"),
        ({"claims": [{"text": "t", "above": "RFSS", "below": "Rfss"}]}, "row 'Rfss', which is none of: RFSS"),
    ],
)
def test_bad_studies_are_refused_in_one_line(content: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        plan(tmp_path, **content)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_files_that_hold_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"'table-9' is no file.*table-1"):
        load_study("table-9")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(SettingsError, match="must hold a mapping"):
        load_study(str(path))
    path.write_text("a: [")
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_study(str(path))
    with pytest.raises(SettingsError, match="names no images"):
        plan_study(load_study(study_file(tmp_path)), "w")

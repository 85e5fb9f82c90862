"""Filters and strategies in whole runs: what serves a query, who is set aside, what the fingerprint knows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from cohorts import VOTE, settings_for

from flows.evaluate import Evaluation, evaluate
from flows.label_dataset import label_dataset
from flows.options import filter_of
from rfss_core.errors import SettingsError, TooManyQuarantinedError
from rfss_core.quality import split_patients
from rfss_core.store import Manifest, Workspace


def write_sites(path: Path, alone: tuple[int, ...] = ()) -> Path:
    """Give the cohort's 16 patients two sites in turn, and some a site of their own."""
    sites = [f"alone-{number}" if number in alone else "ab"[number % 2] for number in range(16)]
    path.write_text("name,site\n" + "".join(f"sub-{number:02d},{site}\n" for number, site in enumerate(sites)))
    return path


def provenance(workspace: Path) -> pd.DataFrame:
    """Return the masks' provenance of a workspace's only run."""
    return pd.concat([pd.read_parquet(path) for path in (workspace / "stages" / "segment").rglob("slices.parquet")])


def number_of(name: str) -> int:
    """Return the number of a case of the cohort, or of one of its slices."""
    return int(name.split(":")[0].removeprefix("sub-"))


def keys(workspace: Path) -> set[str]:
    """Return the keys under which a workspace holds masks."""
    return {path.name for path in (workspace / "stages" / "segment").iterdir()}


def test_queries_are_served_where_the_users_table_agrees(cohort: Path, tmp_path: Path) -> None:
    table = write_sites(tmp_path / "sites.csv")
    workspace = tmp_path / "w"

    def run(path: Path) -> Evaluation:
        asked = {"metadata": str(path), "filter": {"match": ["site"], "contains": [2]}}
        return evaluate(settings_for(cohort, workspace, segmentation=VOTE, retrieval=asked))

    assert run(table).refused == 0
    rows = provenance(workspace)
    assert len(rows) == 6 * 3 * 2
    for row in rows.itertuples():
        assert len(row.support_ids) == 3
        assert {number_of(name) % 2 for name in row.support_ids} == {number_of(str(row.case_id)) % 2}
    # Where the table lies changes nothing, what it says does.
    before = keys(workspace)
    run(table.rename(tmp_path / "moved.csv"))
    assert keys(workspace) == before
    assert len(provenance(workspace)) == len(rows)
    (tmp_path / "moved.csv").write_text((tmp_path / "moved.csv").read_text().replace(",b", ",c"))
    run(tmp_path / "moved.csv")
    assert len(provenance(workspace)) == 2 * len(rows)


def test_a_case_that_cannot_be_served_is_set_aside_and_the_run_goes_on(cohort: Path, tmp_path: Path) -> None:
    table = write_sites(tmp_path / "sites.csv", alone=(13,))
    asked = {"metadata": str(table), "filter": {"match": ["site"]}}
    summary = label_dataset(settings_for(cohort, tmp_path / "w", segmentation=VOTE, retrieval=asked))
    assert summary.cases.quarantined == 1
    assert sum(summary.decisions.model_dump().values()) == 3
    assert "sub-13" in next(text for text in summary.warnings if "set aside" in text)
    names = {path.name for path in (tmp_path / "w" / "pseudo_labels").glob("*.nii.gz")}
    assert names == {"sub-12.nii.gz", "sub-14.nii.gz", "sub-15.nii.gz"}
    [refused] = Manifest.read(Workspace.open(tmp_path / "w").files).quarantine.to_dict(orient="records")
    assert (refused["name"], refused["reason"]) == ("sub-13", "too_few_supports")
    assert "site is 'alone-13', as the query's" in refused["message"]


def test_too_many_of_them_end_the_run(cohort: Path, tmp_path: Path) -> None:
    table = write_sites(tmp_path / "sites.csv", alone=tuple(range(16)))
    asked = {"metadata": str(table), "filter": {"match": ["site"]}}
    settings = settings_for(cohort, tmp_path / "w", segmentation=VOTE, retrieval=asked)
    with pytest.raises(TooManyQuarantinedError, match=r"could not serve 6 of 6 cases.*too_few_supports.*rfss status"):
        evaluate(settings)


def test_the_presets_k_is_a_wish_and_a_k_is_not(cohort: Path, tmp_path: Path) -> None:
    chosen = min(split_patients([f"sub-{number:02d}" for number in range(12)], 0.5, 0).support)
    asked = {"filter": {"equals": {"name": [chosen]}}}
    settings = settings_for(cohort, tmp_path / "w", k=None, segmentation=VOTE, retrieval=asked)
    assert evaluate(settings).k == 3
    assert {name.split(":")[0] for ids in provenance(tmp_path / "w")["support_ids"] for name in ids} == {chosen}
    with pytest.raises(SettingsError, match=r"k is 4, but only 3 of .* where name is 'sub-..'; lower --k, widen the"):
        evaluate(settings.model_copy(update={"k": 4}))


def test_only_an_image_without_a_label_may_be_served_by_its_own_patient(cohort: Path, tmp_path: Path) -> None:
    """Cases 12 to 15 are of the patients of cases 2 to 5, and k takes all slices that there are."""
    support = split_patients([str(number % 10) for number in range(12)], 0.5, 0).support
    slices = 3 * sum(str(number % 10) in support for number in range(12))
    settings = settings_for(
        cohort,
        tmp_path / "w",
        k=slices,
        held_out=0.5,
        segmentation=VOTE,
        imaging={"patient_pattern": "sub-.(.)"},
        retrieval={"filter": {"own_patient": "unlabelled"}},
    )
    summary = label_dataset(settings)
    assert summary.cases.quarantined == 0
    rows = provenance(tmp_path / "w")
    for row in rows.itertuples():
        assert {str(number_of(name) % 10) for name in row.support_ids} == set(support)
    served = {number_of(str(name)) for name in rows["case_id"]}
    assert {number for number in served if str(number % 10) in support} <= {12, 13, 14, 15}
    assert any(str(number % 10) in support for number in range(12, 16))


@pytest.mark.parametrize("strategy", ["per-class", "diverse", "region"])
def test_strategies_serve_whole_runs(cohort: Path, tmp_path: Path, strategy: str) -> None:
    settings = settings_for(cohort, tmp_path / "w", k=2, retrieval={"strategy": strategy})
    result = evaluate(settings, test_patients=1)
    assert result.strategy == strategy
    assert result.refused == 0
    assert result.dice["mean"] is not None
    assert ("patches" in result.seconds) == (strategy == "region")
    rows = provenance(tmp_path / "w")
    assert all(len(ids) == len(set(ids)) == 2 for ids in rows["support_ids"])
    if strategy == "per-class":
        # All slices of the cohort hold both classes: nothing can lack one.
        by_class = {value: part["support_ids"].map(list).tolist() for value, part in rows.groupby("class")}
        assert by_class[1] == by_class[2]


def test_options_become_a_filter() -> None:
    assert filter_of(["modality=MR, CT", "contains=LV", "modality=US", "label_source=expert"], ["site"]) == {
        "equals": {"modality": ["MR", "CT", "US"]},
        "contains": ["LV"],
        "label_source": ["expert"],
        "match": ["site"],
    }
    assert filter_of(None, None) == {}
    with pytest.raises(SettingsError, match="'modality' is not COLUMN=VALUE"):
        filter_of(["modality"], None)

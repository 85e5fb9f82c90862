"""Filters: the same rows as a look at every row, before the top-k, and a word about what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.errors import InputNotFoundError, SettingsError, TooFewSupportsError
from rfss_core.retrieval import Retriever, SupportSet
from rfss_core.retrieval.filter import SupportFilter
from rfss_core.retrieval.metadata import case_metadata, filter_columns, unprefixed
from rfss_core.settings import FilterSettings, RetrievalSettings

CLASSES = {1: "RV", 2: "Myo", 3: "LV"}
MODALITIES, SOURCES = ("MR", "CT", "US"), ("expert", "pseudo-label")


def support_of(n: int, seed: int) -> SupportSet:
    rng = np.random.default_rng(seed)
    metadata = pd.DataFrame(
        {
            "modality": rng.choice(MODALITIES, n),
            "site": rng.choice(["1", "01", "b"], n),
            "spacing_z": rng.choice([1.0, 2.5, 8.0], n),
            "label_source": rng.choice(SOURCES, n),
        }
    )
    return SupportSet(
        [f"s{i:03d}" for i in range(n)],
        [str(patient) for patient in rng.choice(list("abcd"), n)],
        CLASSES,
        lambda _: np.zeros((4, 4), np.float32),
        lambda _: np.zeros((4, 4), np.uint8),
        class_presence=rng.random((n, 3)) < 0.5,
        embeddings=rng.normal(size=(n, 6)),
        metadata=metadata,
    )


filters = st.builds(
    FilterSettings,
    equals=st.dictionaries(
        st.sampled_from(["modality", "site"]), st.lists(st.sampled_from([*MODALITIES, "1", "01", "b"]), min_size=1)
    ),
    match=st.lists(st.sampled_from(["modality", "spacing_z"]), unique=True),
    contains=st.lists(st.sampled_from([1, "RV", "2", "LV"]), max_size=2),
    lacks=st.lists(st.sampled_from([2, "LV"]), max_size=1),
    label_source=st.one_of(st.none(), st.lists(st.sampled_from(SOURCES), min_size=1)),
)


def brute_force(support: SupportSet, asked: FilterSettings, patient: str | None, own: dict[str, Any]) -> list[bool]:
    """Look at every row on its own."""
    value_of = {**{str(v): v for v in CLASSES}, **{name: v for v, name in CLASSES.items()}}
    rows = []
    for i in range(len(support)):
        row = support.metadata.iloc[i]
        held = {value for value, there in zip(CLASSES, support.class_presence[i], strict=True) if there}
        rows.append(
            support.patients[i] != patient
            and all(row[name] in values for name, values in asked.equals.items())
            and all(row[name] == own[name] for name in asked.match)
            and all(value_of[str(one)] in held for one in asked.contains)
            and not any(value_of[str(one)] in held for one in asked.lacks)
            and (asked.label_source is None or row["label_source"] in asked.label_source)
        )
    return rows


@settings(deadline=None, max_examples=150)
@given(
    asked=filters,
    n=st.integers(1, 40),
    patient=st.sampled_from(["a", "b", "z", None]),
    modality=st.sampled_from(MODALITIES),
    spacing=st.sampled_from([1.0, "2.5", 8]),
    seed=st.integers(0, 1000),
)
def test_the_mask_is_that_of_a_look_at_every_row(
    asked: FilterSettings, n: int, patient: str | None, modality: str, spacing: Any, seed: int
) -> None:
    support = support_of(n, seed)
    chosen = SupportFilter(asked, support)
    own = {"modality": modality, "spacing_z": spacing}
    truth = brute_force(support, asked, patient, {**own, "spacing_z": float(spacing)})
    assert chosen.allowed(chosen.key(patient, own)).tolist() == truth


@settings(deadline=None, max_examples=60)
@given(asked=filters, k=st.integers(1, 8), strategy=st.sampled_from(["dino", "random"]), seed=st.integers(0, 1000))
def test_it_holds_before_the_top_k(asked: FilterSettings, k: int, strategy: Any, seed: int) -> None:
    support = support_of(40, seed)
    rng = np.random.default_rng(seed + 1)
    queries = rng.normal(size=(5, 6))
    patients = [str(one) for one in rng.choice(list("abcdz"), 5)]
    own = [{"modality": str(one), "spacing_z": 1.0} for one in rng.choice(MODALITIES, 5)]
    search = Retriever(support, RetrievalSettings(strategy=strategy, filter=asked), seed)
    for i in range(5):
        rows = np.flatnonzero(brute_force(support, asked, patients[i], own[i]))
        arguments = (queries[i : i + 1], [f"q{i}"], [patients[i]], k)
        if len(rows) < k:
            with pytest.raises(
                TooFewSupportsError, match=f"'q{i}' asks for k = {k} .* only {len(rows)} of 40 are left"
            ):
                search.search(*arguments, metadata=[own[i]])
            continue
        [found] = search.search(*arguments, metadata=[own[i]])
        assert set(found.indices.tolist()) <= set(rows.tolist())
        assert len(set(found.indices.tolist())) == k
        if strategy == "dino":
            assert support.embeddings is not None
            unit = queries[i] / np.linalg.norm(queries[i])
            nearest = np.sort(((support.embeddings[rows] - unit) ** 2).sum(axis=1))[:k]
            assert np.allclose(found.distances, nearest, atol=1e-6)


def test_the_error_names_filter_count_and_next_step() -> None:
    support = support_of(30, 0)
    asked = RetrievalSettings(
        filter={"equals": {"modality": "MR"}, "contains": ["LV"], "match": ["site"], "label_source": ["expert"]}
    )
    with pytest.raises(LookupError) as caught:
        Retriever(support, asked).search(np.ones((1, 6)), ["q7"], ["a"], 30, metadata=[{"site": "b"}])
    message = str(caught.value)
    for part in (
        "query 'q7'",
        "k = 30",
        "of 30 are left",
        "modality is 'MR'",
        "holds class 3 (LV)",
        "site is 'b', as the query's",
        "label_source is 'expert'",
        "not the query's own, 'a'",
        "widen the filter",
    ):
        assert part in message
    assert caught.value.reason == "too_few_supports"  # type: ignore[attr-defined]


def test_what_is_not_there_is_said() -> None:
    support = support_of(5, 0)
    for bad, message in (
        ({"equals": {"scanner": ["x"]}}, "column 'scanner'.*label_source, modality, patient, site"),
        ({"contains": ["spleen"]}, r"class 'spleen'.*1 \(RV\), 2 \(Myo\)"),
        ({"equals": {"spacing_z": ["thick"]}}, "'spacing_z' holds numbers.*'thick'"),
    ):
        with pytest.raises(SettingsError, match=message):
            Retriever(support, RetrievalSettings(filter=bad))
    matching = Retriever(support, RetrievalSettings(filter={"match": ["site"]}))
    with pytest.raises(SettingsError, match="column 'site', of which a query has no value"):
        matching.search(np.ones((1, 6)), ["q"], [None], 1)
    with pytest.raises(SettingsError, match="1 queries but 2 metadata"):
        matching.search(np.ones((1, 6)), ["q"], [None], 1, metadata=[{"site": "b"}] * 2)


def test_columns_of_a_set_without_metadata() -> None:
    support = SupportSet.from_arrays([np.zeros((4, 4), np.float32)] * 3, [np.ones((4, 4), np.uint8)] * 3, list("abb"))
    for asked, rows in (
        ({"equals": {"patient": "b"}}, [False, True, True]),
        ({"equals": {"id": ["slice-0000", "slice-0002"]}}, [True, False, True]),
        ({"label_source": ["expert"]}, [True, True, True]),
        ({"label_source": ["pseudo-label"]}, [False, False, False]),
    ):
        assert SupportFilter(FilterSettings.model_validate(asked), support).rows.tolist() == rows


def test_subsets_keep_their_rows_metadata() -> None:
    support = support_of(20, 3)
    part = support.subset([7, 2, 11])
    assert part.metadata["modality"].tolist() == [support.metadata["modality"][i] for i in (7, 2, 11)]


def test_settings_are_keys_and_forms() -> None:
    first, second = (RetrievalSettings(filter={"equals": {"modality": "MR"}}) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(ValueError, match="column 'modality' has no allowed value"):
        FilterSettings(equals={"modality": []})


def cases(n: int = 4) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(n)],
            "name": [f"folder/c{i}" for i in range(n)],
            "patient": [f"p{i // 2}" for i in range(n)],
            "modality": "unknown",
            "body_part": "unknown",
            "kind": "nifti",
            "n_slices": 3,
            "height": 10,
            "width": 10,
            "spacing_z": 1.0,
            "spacing_y": 1.0,
            "spacing_x": 1.0,
            "labelled": [True, True, False, False][:n],
        }
    )


def test_a_table_adds_columns_by_patient_or_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("patient,modality,site\np1,MR,007\n")
    known = case_metadata(cases(), str(path))
    assert known["modality"].tolist() == ["unknown", "unknown", "MR", "MR"]
    assert known["site"].tolist() == ["", "", "007", "007"]
    assert known["label_source"].tolist() == ["expert", "expert", "", ""]
    path.write_text("name,label_source\nfolder/c1,pseudo-label\nelsewhere,expert\n")
    assert case_metadata(cases(), str(path))["label_source"].tolist() == ["expert", "pseudo-label", "", ""]
    asked = RetrievalSettings(metadata=str(path), filter={"match": ["modality"], "label_source": ["expert"]})
    columns = unprefixed(filter_columns(cases(), asked))
    assert columns.columns.tolist() == ["label_source", "modality"]


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, message in (
        ("modality\nMR\n", "needs either 'name'"),
        ("name,patient\nfolder/c0,p0\n", "not both"),
        ("patient,site\np1,a\np1,b\n", "lists patient 'p1' more than once"),
        ("patient,height\np1,3\n", "column 'height', which is the manifest's own"),
        ("patient,label_source\np1,student\n", "label_source 'student'"),
        ("", "not a CSV table"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=message):
            case_metadata(cases(), str(path))
    with pytest.raises(InputNotFoundError, match="does not exist"):
        case_metadata(cases(), str(tmp_path / "none.csv"))
    with pytest.raises(SettingsError, match=r"column 'scanner'.*spacing_x"):
        filter_columns(cases(), RetrievalSettings(filter={"match": ["scanner"]}))

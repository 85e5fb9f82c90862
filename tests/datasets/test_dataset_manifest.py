from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rfss_core.datasets import DatasetEntry, dataset_table, read_dataset, write_dataset
from rfss_core.digest import digest_bytes
from rfss_core.errors import CorruptStoreError, InputError, InputNotFoundError, UnsafePathError

CLASSES = {1: "RV", 3: "LV"}


def make(folder: Path, count: int = 4) -> list[DatasetEntry]:
    entries = []
    for number in range(count):
        data = f"mask {number}".encode()
        path = folder / "site a" / f"näme{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        entries.append(
            DatasetEntry(
                case=f"c{number}",
                name=f"site a/näme{number}",
                patient=f"p{number}",
                label_path=f"site a/näme{number}.nii.gz",
                sha256=digest_bytes(data),
                source_digest=f"{number}" * 64,
                decision=("accept", "review", "reject")[number % 3],  # type: ignore[arg-type]
                predicted_dice=None if number == 1 else 0.8 + number / 3,
                lower=None if number == 1 else 0.5,
                slices=9,
            )
        )
    return entries


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, "hearts", make(tmp_path), CLASSES, {"preset": "tiny"})
    assert read_dataset(tmp_path) == written
    assert written.decisions == {"accept": 2, "review": 1, "reject": 1}
    assert written.classes == CLASSES
    assert len(written.digest) == 64


def test_the_parquet_manifest_holds_the_same(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, "hearts", make(tmp_path), CLASSES)
    table = pd.read_parquet(tmp_path / "manifest.parquet")
    assert list(table.columns) == [column.name for column in fields(DatasetEntry)]
    pd.testing.assert_frame_equal(table, dataset_table(written), check_dtype=False)
    assert table["case"].tolist() == ["c0", "c1", "c2", "c3"]
    assert np.isnan(table["predicted_dice"][1])
    assert table["sha256"][2] == digest_bytes(b"mask 2")


def test_same_content_same_bytes_in_any_order(tmp_path: Path) -> None:
    found = []
    for name, step in (("one", 1), ("two", -1)):
        folder = tmp_path / name
        write_dataset(folder, "hearts", make(folder)[::step], dict(list(CLASSES.items())[::step]), {"b": 1, "a": 2})
        found.append([(folder / file).read_bytes() for file in ("manifest.json", "manifest.parquet")])
    assert found[0] == found[1]


Change = Callable[[list[DatasetEntry]], list[DatasetEntry]]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        *[
            (lambda rows, key=key, value=value: [replace(rows[0], **{key: value}), *rows[1:]])
            for key, value in {
                "case": "zz", "name": "other", "patient": "q", "source_digest": "e" * 64, "decision": "review",
                "predicted_dice": 0.123, "lower": None, "slices": 8,
            }.items()
        ],
    ],
)  # fmt: skip
def test_the_digest_changes_with_the_entries(tmp_path: Path, change: Change) -> None:
    entries = make(tmp_path)
    before = write_dataset(tmp_path, "hearts", entries, CLASSES).digest
    assert write_dataset(tmp_path, "hearts", change(entries), CLASSES).digest != before


def test_the_digest_changes_with_masks_names_and_classes_and_nothing_else(tmp_path: Path) -> None:
    entries = make(tmp_path)
    before = write_dataset(tmp_path, "hearts", entries, CLASSES).digest
    assert write_dataset(tmp_path, "hearts", entries, CLASSES, {"created": "later"}).digest == before
    assert write_dataset(tmp_path, "hearts", entries, {1: "RV", 2: "LV"}).digest != before
    assert write_dataset(tmp_path, "hearts", entries, {1: "RV", 3: "lv"}).digest != before
    assert write_dataset(tmp_path, "lungs", entries, CLASSES).digest != before
    (tmp_path / entries[0].label_path).write_bytes(b"better")
    better = [replace(entries[0], sha256=digest_bytes(b"better")), *entries[1:]]
    assert write_dataset(tmp_path, "hearts", better, CLASSES).digest != before


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    entries = make(tmp_path)
    write_dataset(tmp_path, "hearts", entries, CLASSES)
    (tmp_path / entries[0].label_path).write_bytes(b"tampered")
    (tmp_path / entries[2].label_path).unlink()
    with pytest.raises(CorruptStoreError) as raised:
        read_dataset(tmp_path)
    assert "missing: site a/näme2.nii.gz" in str(raised.value)
    assert "changed: site a/näme0.nii.gz" in str(raised.value)
    assert "näme1" not in str(raised.value)
    assert read_dataset(tmp_path, verify=False).name == "hearts"
    # What does not match is not registered either.
    with pytest.raises(CorruptStoreError, match="näme2"):
        write_dataset(tmp_path, "hearts", entries, CLASSES)


def test_an_altered_manifest_is_noticed(tmp_path: Path) -> None:
    write_dataset(tmp_path, "hearts", make(tmp_path), CLASSES)
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    document["content"]["cases"][1]["decision"] = "accept"
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptStoreError, match="was altered"):
        read_dataset(tmp_path)
    path.write_text('{"content": []}')
    with pytest.raises(CorruptStoreError, match="not a manifest"):
        read_dataset(tmp_path)
    path.write_text("nonsense")
    with pytest.raises(CorruptStoreError, match="not a manifest"):
        read_dataset(tmp_path)


def test_bad_data_sets_are_refused(tmp_path: Path) -> None:
    entries = make(tmp_path)
    with pytest.raises(InputError, match="no case"):
        write_dataset(tmp_path, "hearts", [], CLASSES)
    with pytest.raises(InputError, match="'c0' more than once"):
        write_dataset(tmp_path, "hearts", [entries[0], replace(entries[1], case="c0")], CLASSES)
    with pytest.raises(InputError, match=r"label_path 'site a/näme0\.nii\.gz' more than once"):
        write_dataset(tmp_path, "hearts", [entries[0], replace(entries[0], case="c9")], CLASSES)
    for path in ("../outside.nii.gz", "/etc/passwd"):
        with pytest.raises(UnsafePathError):
            write_dataset(tmp_path, "hearts", [replace(entries[0], label_path=path)], CLASSES)
    with pytest.raises(InputNotFoundError, match="no data set"):
        read_dataset(tmp_path / "nowhere")
    assert not (tmp_path / "manifest.json").exists()


def test_choosing_nothing_says_what_there_is(tmp_path: Path) -> None:
    written = write_dataset(tmp_path, "hearts", make(tmp_path, 2)[1:], CLASSES)
    with pytest.raises(InputError, match=r"no case decided accept .*review 1"):
        written.select("accept")


def test_object_stores_hold_data_sets_too(tmp_path: Path) -> None:
    from rfss_core.store import Files

    entries = make(tmp_path)
    url = f"memory://{tmp_path.name}"
    for entry in entries:
        Files(url).write_bytes(entry.label_path, (tmp_path / entry.label_path).read_bytes())
    written = write_dataset(url, "hearts", entries, CLASSES)
    assert read_dataset(url) == written
    assert written.digest == write_dataset(tmp_path, "hearts", entries, CLASSES).digest

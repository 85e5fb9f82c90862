from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rfss_core.datasets import PROVENANCE_SCHEMA, provenance_table
from rfss_core.errors import InputError


def table(**changes: object) -> pd.DataFrame:
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, :2] = 1
    labels[1, 0, 0] = 3
    arguments: dict[str, object] = {
        "case_id": "c1",
        "labels": labels,
        "classes": [1, 3],
        "object_score": np.array([[2.0, -1.0], [0.5, np.nan]]),
        "predicted_iou": np.array([[0.9, 0.1], [0.4, 0.8]], np.float32),
        "support_ids": [["a/0", "b/1"], ["b/2"]],
        "distances": [np.array([0.1, 0.2], np.float32), [0.3]],
    }
    return provenance_table(**{**arguments, **changes})  # type: ignore[arg-type]


def test_one_row_a_slice_and_class() -> None:
    found = table()
    assert found.columns.tolist() == PROVENANCE_SCHEMA.names
    assert found["slice"].tolist() == [0, 0, 1, 1]
    assert found["class"].tolist() == [1, 3, 1, 3]
    assert found["voxels"].tolist() == [8, 0, 0, 1]
    assert found["predicted_iou"].tolist() == pytest.approx([0.9, 0.1, 0.4, 0.8])
    assert found["support_ids"].tolist() == [["a/0", "b/1"], ["a/0", "b/1"], ["b/2"], ["b/2"]]
    assert found["distances"][0] == pytest.approx([0.1, 0.2])


def test_it_survives_parquet(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "p.parquet", index=False, schema=PROVENANCE_SCHEMA)
    assert pq.read_schema(tmp_path / "p.parquet").remove_metadata() == PROVENANCE_SCHEMA
    back = pd.read_parquet(tmp_path / "p.parquet")
    assert back["voxels"].tolist() == table()["voxels"].tolist()
    assert [list(ids) for ids in back["support_ids"]] == table()["support_ids"].tolist()
    assert np.isnan(back["object_score"][3])


@pytest.mark.parametrize(
    "changes",
    [
        {"object_score": np.zeros((2, 3))},
        {"predicted_iou": np.zeros((1, 2))},
        {"support_ids": [["a/0"], ["b/2"]]},
        {"support_ids": [["a/0", "b/1"]], "distances": [[0.1, 0.2]]},
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="c1"):
        table(**changes)

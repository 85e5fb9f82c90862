"""Provenance of a pseudo-label: where each class of each slice came from (invariant 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from rfss_core.errors import InputError

PROVENANCE_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string()),
        pa.field("slice", pa.int32()),
        pa.field("class", pa.uint8()),
        pa.field("voxels", pa.int64()),
        pa.field("object_score", pa.float32()),
        pa.field("predicted_iou", pa.float32()),
        pa.field("support_ids", pa.list_(pa.string())),
        pa.field("distances", pa.list_(pa.float32())),
    ]
)
"""Arrow schema of a provenance table: pass it to ``DataFrame.to_parquet(..., schema=PROVENANCE_SCHEMA)``."""


def provenance_table(
    case_id: str,
    labels: npt.NDArray[np.uint8],
    classes: Sequence[int],
    object_score: npt.NDArray[np.floating[Any]],
    predicted_iou: npt.NDArray[np.floating[Any]],
    support_ids: Sequence[Sequence[str]],
    distances: Sequence[Sequence[float] | npt.NDArray[np.floating[Any]]],
    serving: Sequence[Sequence[npt.NDArray[np.bool_]]] | None = None,
) -> pd.DataFrame:
    """Tabulate one case's provenance, one row a slice and class.

    Args:
        case_id: id of the case.
        labels: pseudo-label [Z, H, W].
        classes: label values in the order of the C columns.
        object_score: object score as a logit [Z, C]; NaN where the segmenter has none.
        predicted_iou: the model's own estimate of the IoU [Z, C]; NaN where the segmenter has none.
        support_ids: ids of the retrieved support slices, nearest first, of each slice.
        distances: their squared L2 distances.
        serving: for each slice and class, which of these supports serve the class. Default: all.

    Returns:
        A table with the columns of :data:`PROVENANCE_SCHEMA`, ordered by slice, then class.

    Raises:
        InputError: the arguments' shapes contradict each other.
    """
    depth, shape = labels.shape[0], (labels.shape[0], len(classes))
    if object_score.shape != shape or predicted_iou.shape != shape:
        raise InputError(
            f"object_score {object_score.shape} and predicted_iou {predicted_iou.shape} of case '{case_id}' must be "
            f"{shape}: slices by classes"
        )
    if [len(ids) for ids in support_ids] != [len(row) for row in distances] or len(support_ids) != depth:
        raise InputError(f"case '{case_id}' has {depth} slices: each needs as many support ids as distances")
    rows = [(z, c) for z in range(depth) for c in range(len(classes))]
    serves = [np.ones(len(support_ids[z]), np.bool_) if serving is None else serving[z][c] for z, c in rows]
    voxels = np.stack([(labels == value).sum(axis=(1, 2)) for value in classes], axis=1)
    count = len(classes)
    return pd.DataFrame(
        {
            "case_id": pd.Series([case_id] * depth * count, dtype="str"),
            "slice": np.repeat(np.arange(depth, dtype=np.int32), count),
            "class": np.tile(np.array(classes, dtype=np.uint8), depth),
            "voxels": voxels.ravel().astype(np.int64),
            "object_score": object_score.astype(np.float32).ravel(),
            "predicted_iou": predicted_iou.astype(np.float32).ravel(),
            "support_ids": [
                [name for name, used in zip(support_ids[z], own, strict=True) if used]
                for (z, _), own in zip(rows, serves, strict=True)
            ],
            "distances": [
                [float(value) for value, used in zip(distances[z], own, strict=True) if used]
                for (z, _), own in zip(rows, serves, strict=True)
            ],
        },
        columns=PROVENANCE_SCHEMA.names,
    )

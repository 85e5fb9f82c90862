"""Quality as files: what stage quality leaves in the workspace for whoever wants to look closer."""

from __future__ import annotations

import io
import json
from typing import Any

import pandas as pd

from rfss_core.quality import METRICS_LIBRARY, QualityPrediction
from tasks.quality_outcome import QualityOutcome
from tasks.run import Run

FOLDER = "quality"
"""Folder of the workspace: cases, slices and held_out as Parquet, quality.json."""


def write_quality(run: Run, outcome: QualityOutcome) -> None:
    """Write the folder ``quality`` anew.

    Args:
        run: the run.
        outcome: what is known.
    """
    tables = {"cases": case_table(outcome), "slices": outcome.slices, "held_out": held_out_table(outcome)}
    for name, table in tables.items():
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        run.workspace.files.write_bytes(f"{FOLDER}/{name}.parquet", buffer.getvalue())
    text = json.dumps(quality_document(outcome), indent=2, allow_nan=False) + "\n"
    run.workspace.files.write_bytes(f"{FOLDER}/quality.json", text.encode())


def case_table(outcome: QualityOutcome) -> pd.DataFrame:
    """Return one row an unlabelled case: predicted Dice and lower bound, whole and by class, and the decision."""
    rows = []
    for case, decision in outcome.decisions.items():
        row: dict[str, Any] = {"case_id": case, "decision": decision}
        for prefix, found in {"": outcome.prediction, **outcome.by_class}.items():
            mark = f"{prefix}." if prefix else ""
            row |= {f"{mark}predicted": found.predicted.get(case), f"{mark}lower": found.lower.get(case)}
        rows.append(row)
    return pd.DataFrame(rows)


def held_out_table(outcome: QualityOutcome) -> pd.DataFrame:
    """Return one row a held-out case, slice (-1: the volume) and class with all metrics."""
    rows = []
    for case in outcome.measurements:
        for z, metrics in enumerate([case.metrics, *case.slices], start=-1):
            rows += [{"case_id": case.case, "patient": case.patient, "slice": z, **vars(metric)} for metric in metrics]
    return pd.DataFrame(rows)


def quality_document(outcome: QualityOutcome) -> dict[str, Any]:
    """Return prediction, signals' worth, coverage against quality and the gate as plain JSON types."""
    return {
        "metrics_library": METRICS_LIBRARY,
        "cases": _prediction(outcome.prediction),
        "classes": {name: _prediction(found) for name, found in outcome.by_class.items()},
        "slices": _prediction(outcome.slice_prediction),
        "signals": [row.to_json() for row in outcome.prediction.worth],
        "acceptance": [dict(vars(point)) for point in outcome.acceptance],
        "voxels": [dict(vars(point)) for point in outcome.voxels],
        "gate": {"passed": outcome.gate.passed, "reasons": outcome.gate.reasons, "advice": outcome.gate.advice},
    }


def _prediction(found: QualityPrediction) -> dict[str, Any]:
    return {
        **found.to_json(),
        "baseline_mae": found.baseline_mae,
        "patients": found.patients,
        "note": found.note,
    }

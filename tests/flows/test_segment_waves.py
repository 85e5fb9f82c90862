"""What the segment stage hands to the segmenter: whole cases, each one's slices in z order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohorts import VOTE, save, settings_for, write_cohort

import tasks.segment
from flows.evaluate import evaluate
from rfss_core.segmentation import Segmenter
from rfss_core.store import Workspace
from tasks.models import segmenter_for


class Listener:
    """A segmenter that keeps what it was asked with volumes."""

    def __init__(self, segmenter: Segmenter, heard: list[tuple[list[int], list[np.ndarray]]]) -> None:
        self.segmenter = segmenter
        self.heard = heard
        self.digest = segmenter.digest
        self.trained = segmenter.trained

    def segment(self, queries: Any, *rest: Any, volumes: Any = None, **more: Any) -> Any:
        if volumes is not None:
            self.heard.append((list(volumes), list(queries)))
        return self.segmenter.segment(queries, *rest, volumes=volumes, **more)


def test_a_wave_holds_whole_volumes_in_z_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=4, labelled=4, depth=5)
    # One 2-D image among the volumes.
    save(cohort / "images" / "sub-90.nii.gz", np.arange(1600, dtype=np.int16).reshape(40, 40, 1))
    save(cohort / "labels" / "sub-90.nii.gz", np.ones((40, 40, 1), np.uint8))
    waves: list[tuple[list[int], list[np.ndarray]]] = []
    monkeypatch.setattr(tasks.segment, "segmenter_for", lambda *given: Listener(segmenter_for(*given), waves))
    workspace = tmp_path / "workspace"
    run = evaluate(settings_for(cohort, workspace, k=1, segmentation={**VOTE, "batch_size": 4}), test_patients=4)
    cases = [Workspace.open(workspace).case(result.case).read_slices() for result in run.per_case]
    given = [
        np.stack(queries[end - length : end])
        for volumes, queries in waves
        for length, end in zip(volumes, np.cumsum(volumes), strict=True)
    ]
    assert len(waves) > 1
    assert all(sum(volumes) == len(queries) for volumes, queries in waves)
    assert sorted(volume.tobytes() for volume in given) == sorted(case.tobytes() for case in cases)

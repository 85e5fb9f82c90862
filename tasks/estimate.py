"""Estimate of a study's time from a few timed slices of noise on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rfss_core.presets import PRESETS
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.segmentation import load_segmenter
from rfss_core.settings import SUPERVISED
from rfss_core.store.files import Files
from rfss_core.study import Plan, PlannedRow
from rfss_core.study.check import Checked, RowSize
from rfss_core.study.result import read_row
from rfss_core.training import train_supervised
from rfss_core.weights import resolve_device

ROW_SECONDS = 3.0
"""Splits, records and tables of one row."""
SLICE_SECONDS = 0.03
"""Metrics and writing of one test slice, measured on ACDC."""
_QUERIES, _SUPPORTS = 2, 4


@dataclass(frozen=True)
class Estimate:
    """How long a study takes."""

    sizes: tuple[RowSize, ...]
    seconds: tuple[float, ...]
    """One a row; 0 for finished ones."""
    finished: int
    notes: tuple[str, ...]
    how: str

    @property
    def total(self) -> float:
        """Seconds of all rows."""
        return sum(self.seconds)


def estimate(plan: Plan, checked: Checked, files: Files) -> Estimate:
    """Time the models on a few slices of noise of the data's size, and add up.

    Loads every model of the study, so one that is missing is found here. Only a rough figure: it knows nothing of
    other work on the machine, nor of an executor with several workers.

    Args:
        plan: the study.
        checked: its sizes.
        files: output folder, for rows that are finished.

    Raises:
        ModelNotFoundError: a model is neither on this machine nor within reach.
    """
    timed: dict[str, Callable[[PlannedRow, RowSize], float]] = {}
    seconds = []
    finished = 0
    for row, size, fingerprint in zip(plan.rows, checked.sizes, checked.fingerprints(plan), strict=True):
        if read_row(files, fingerprint) is not None:
            finished += 1
            seconds.append(0.0)
            continue
        settings = row.settings.segmentation
        kind = settings.model_dump_json(exclude={"points"}) + row.settings.training.model_dump_json()
        if kind not in timed:
            timed[kind] = _trained(row, size) if settings.segmenter in SUPERVISED else _segmented(row, size)
        seconds.append(ROW_SECONDS + size.test_slices * SLICE_SECONDS + timed[kind](row, size))
    how = "timed on a few slices of noise" if timed else "nothing to time"
    return Estimate(checked.sizes, tuple(seconds), finished, checked.notes, how)


def _noise(size: RowSize) -> SupportSet:
    side = max(16, round(size.test_pixels**0.5))
    rng = np.random.default_rng(0)
    images = [rng.random((side, side), dtype=np.float32) for _ in range(_SUPPORTS)]
    masks = []
    for _ in images:
        mask = np.zeros((side, side), np.uint8)
        for value in range(1, size.classes + 1):
            mask[side // 4 : side // 2, side * value // (size.classes + 2) :] = value
        masks.append(mask)
    return SupportSet.from_arrays(images, masks, [f"p{number}" for number in range(_SUPPORTS)])


def _segmented(row: PlannedRow, size: RowSize) -> Callable[[PlannedRow, RowSize], float]:
    """Return the seconds of a row as a function: a constant a slice, and a part that grows with k."""
    settings = row.settings.segmentation.model_copy(update={"volume_memories": 0})
    if settings.segmenter == "sam2-points":
        # Prompts cost about what attention to one support does.
        settings = settings.model_copy(update={"segmenter": "sam2-memory", "points": None})
    segmenter, support = load_segmenter(settings, PRESETS[row.settings.preset]), _noise(size)
    queries = [support.image(i) for i in range(_QUERIES)]

    def run(k: int) -> float:
        near = [Neighbours(np.arange(k), np.zeros(k, np.float32))] * _QUERIES
        started = time.perf_counter()
        segmenter.segment(queries, near, support, keep_logits=False)
        return time.perf_counter() - started

    cold = run(_SUPPORTS)
    one, all_of_them = min(run(1) for _ in range(2)), min(run(_SUPPORTS) for _ in range(2))
    a_support = max(0.0, cold - all_of_them) / _SUPPORTS
    slope = max(0.0, all_of_them - one) / _QUERIES / (_SUPPORTS - 1)
    constant = max(0.0, one / _QUERIES - slope)

    def seconds(row: PlannedRow, size: RowSize) -> float:
        k = (row.settings.k or 1) if row.retrieves else 1
        if row.settings.retrieval.strategy == "per-class":
            k *= size.classes
        return size.test_slices * (constant + slope * k) + size.support_slices * a_support

    return seconds


def _trained(row: PlannedRow, size: RowSize) -> Callable[[PlannedRow, RowSize], float]:
    support, steps = _noise(size), 2
    settings = row.settings.training.model_copy(update={"steps": steps, "round_steps": 1})
    started = time.perf_counter()
    device = resolve_device(row.settings.segmentation.device)
    train_supervised(support, row.settings.segmentation.segmenter, settings, seed=0, device=device)
    a_step = (time.perf_counter() - started) / steps
    # A forward pass of one slice is about a third of its share of a step.
    a_slice = a_step / row.settings.training.batch_size / 3
    return lambda row, size: row.settings.training.steps * a_step + size.test_slices * a_slice

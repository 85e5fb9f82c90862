"""Dice of the held-out cases by thirds of their labelled slices."""

from __future__ import annotations

from rfss_core.quality import dice_by_third
from tasks.index import SupportIndex
from tasks.quality import read_mask
from tasks.run import Run
from tasks.segment import Masks


def measure_thirds(run: Run, index: SupportIndex, masks: Masks) -> dict[str, dict[str, dict[str, float]]]:
    """Return case id, third and class name to Dice; see :func:`rfss_core.quality.thirds.dice_by_third`.

    Args:
        run: the run.
        index: names the classes.
        masks: what stage segment wrote.
    """
    classes = dict(index.classes)
    return {
        case_id: dice_by_third(
            read_mask(run, masks, unit, case_id, "labels"), run.workspace.case(case_id).read_labels(), classes
        )
        for case_id, unit, held_out in masks.cases()
        if held_out
    }

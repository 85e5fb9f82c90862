"""Drift: is the run that passed its gate worse than the last one, or are its images unlike the labelled ones?"""

from __future__ import annotations

import numpy as np

from rfss_core.events import DriftMeasured
from tasks.run import Run
from tasks.segment import STAGE as SEGMENT_STAGE
from tasks.segment import Masks
from tasks.summary import Summary

FEWEST = {True: 100, False: 20}
"""Slices below which a share says nothing: held-out ones, which make the yardstick, and unlabelled ones."""
QUANTILE = 0.99


def drift(run: Run, masks: Masks, summary: Summary, before: Summary | None) -> list[str]:
    """Return why a person should look, one sentence each; nothing where all is as it was.

    Args:
        run: the run.
        masks: its pseudo-labels, with the distances of each slice's supports.
        summary: what it did.
        before: what the last run in this workspace did.
    """
    alerts = run.settings.alerts
    found = []
    now = summary.held_out_dice["mean"].mean
    then = before.held_out_dice["mean"].mean if before and before.dataset.name == summary.dataset.name else None
    if now is not None and then is not None and then - now > alerts.dice_drop:
        found.append(
            f"the mean held-out Dice fell from {then:.3f} to {now:.3f} since the last run; compare the two reports"
        )
    share = distant_share(run, masks)
    if share is not None and share > alerts.distant_share:
        found.append(
            f"{share:.0%} of the unlabelled slices lie farther from every support slice than {QUANTILE:.0%} of the "
            "held-out slices do: they look unlike what is labelled; label some of them (`rfss select`)"
        )
    change = now - then if now is not None and then is not None else None
    run.events.emit(DriftMeasured(change, share, len(found)))
    return found


def distant_share(run: Run, masks: Masks) -> float | None:
    """Return the share of unlabelled slices beyond the held-out slices' 99th percentile of the nearest distance.

    None with fewer than :data:`FEWEST` slices. Distances are squared L2 of the embeddings.
    """
    store = run.workspace.stage(SEGMENT_STAGE, masks.key)
    sides: dict[bool, list[float]] = {True: [], False: []}
    for unit in masks.units:
        held_out = dict(unit.cases())
        table = store.read_table(unit.id, "slices")
        if table.empty:
            continue
        # One row a slice and class.
        table = table.drop_duplicates(["case_id", "slice"])
        for case_id, distances in zip(table["case_id"], table["distances"], strict=True):
            if case_id in held_out and len(distances):
                sides[held_out[case_id]].append(float(np.min(distances)))
    if any(len(side) < FEWEST[held_out] for held_out, side in sides.items()):
        return None
    return float(np.mean(np.asarray(sides[False]) > np.quantile(sides[True], QUANTILE)))

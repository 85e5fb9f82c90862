"""The review queue: pseudo-labels in the order in which correcting them is expected to help most."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rfss_core.datasets import DatasetEntry, DatasetManifest
from rfss_core.errors import InputNotFoundError
from rfss_core.quality import Candidate, rank_candidates
from rfss_core.settings import QualitySettings
from rfss_core.store import Manifest, Workspace
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.index import STAGE as INDEX_STAGE
from tasks.index import SupportIndex
from tasks.run import Run

QUEUE = "reviews/queue.json"
MOST_SLICES = 200_000
"""Slices whose embeddings are read; of more, every so many of each case."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QueuedCase(_Part):
    """One pseudo-label."""

    rank: int
    """From 1, the first to review."""
    case_id: str
    name: str
    patient: str
    decision: str
    predicted_dice: float | None
    lower_bound: float | None
    expected_gain: float
    """Expected rise of the mean Dice of the other pseudo-labels, where those before it are corrected."""
    serves: bool
    """Whether it would join the support set: not where its patient is held out."""
    reason: str


class ReviewQueue(_Part):
    """What ``reviews/queue.json`` holds."""

    dataset: str
    digest: str
    """Of the data set whose pseudo-labels these are."""
    fingerprint: str
    classes: dict[int, str]
    cases: list[QueuedCase] = Field(default_factory=list)

    @classmethod
    def read(cls, workspace: Workspace) -> ReviewQueue:
        """Read the latest run's queue.

        Raises:
            InputNotFoundError: no run has finished there.
        """
        if not workspace.files.exists(QUEUE):
            raise InputNotFoundError(
                f"workspace '{workspace.url}' holds no review queue: no run has finished there; run `rfss label` first"
            )
        return cls.model_validate_json(workspace.files.read_bytes(QUEUE))

    def write(self, workspace: Workspace) -> None:
        """Write ``reviews/queue.json`` atomically."""
        workspace.files.write_bytes(QUEUE, (self.model_dump_json(indent=1) + "\n").encode())


def review_queue(
    run: Run,
    manifest: Manifest,
    embeddings: Embeddings,
    index: SupportIndex,
    dataset: DatasetManifest,
) -> ReviewQueue:
    """Rank a run's pseudo-labels by the expected gain of correcting them; see :mod:`rfss_core.quality.priority`."""
    cases = manifest.cases.set_index("case_id")
    held_out = set(cases.loc[[case for case in index.held_out_cases if case in cases.index], "patient"])
    where, stored = embeddings.chunk_of_case, run.workspace.stage(EMBED_STAGE, embeddings.key)
    every = max(1, math.ceil(sum(entry.slices for entry in dataset.entries) / MOST_SLICES))
    candidates = [
        Candidate(
            entry.case,
            entry.patient,
            np.asarray(stored.read_array(where[entry.case], entry.case))[::every],
            entry.predicted_dice,
            serves=entry.patient not in held_out,
        )
        for entry in dataset.entries
    ]
    support = run.workspace.stage(INDEX_STAGE, index.key).read_array("support", "embeddings")
    entries = {entry.case: entry for entry in dataset.entries}
    rows = []
    for priority in rank_candidates(candidates, support, index.k, run.settings.seed):
        entry = entries[priority.case]
        rows.append(
            QueuedCase(
                rank=priority.rank,
                case_id=entry.case,
                name=entry.name,
                patient=entry.patient,
                decision=entry.decision,
                predicted_dice=entry.predicted_dice,
                lower_bound=entry.lower,
                expected_gain=priority.gain,
                serves=entry.patient not in held_out,
                reason=_reason(entry, run.settings.quality),
            )
        )
    return ReviewQueue(
        dataset=dataset.name,
        digest=dataset.digest,
        fingerprint=str(dataset.meta["fingerprint"]),
        classes=dict(index.classes),
        cases=rows,
    )


def _reason(entry: DatasetEntry, settings: QualitySettings) -> str:
    if entry.predicted_dice is None or entry.lower is None:
        return "no prediction: an empty pseudo-label, or too few held-out patients"
    if entry.decision == "reject":
        return f"predicted Dice {entry.predicted_dice:.2f} is below {settings.reject_dice:g}"
    beside = "reaches" if entry.lower >= settings.accept_dice else "is below"
    return f"lower bound {entry.lower:.2f} {beside} {settings.accept_dice:g}"

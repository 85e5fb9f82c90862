"""Stage patches: the support slices' patch tokens, for strategies that compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.segmentation.batching import run_in_batches
from rfss_core.store import Workspace
from tasks.chunks import finish_chunk, pending
from tasks.embed import EmbedJob
from tasks.models import embedder_for
from tasks.phases import Phases
from tasks.run import STAGE_TASK, ChunkReport, Run

STAGE = "patches"
ARRAY = "tokens"
CASES_KEPT = 16
"""Cases whose tokens a reader keeps besides the support set's own cache."""


@dataclass(frozen=True)
class Patches:
    """Where the patch tokens are: for each case that has support slices an array [n, h, w, D] float16."""

    key: str

    def reader(self, workspace: Workspace, table: pd.DataFrame) -> Callable[[int], npt.NDArray[Any]]:
        """Return what reads the tokens [h, w, D] of a row of the table of support slices."""
        store = workspace.stage(STAGE, self.key)
        cases, places = table["case_id"].tolist(), table.groupby("case_id", sort=False).cumcount().tolist()

        @lru_cache(maxsize=CASES_KEPT)
        def tokens(case_id: str) -> npt.NDArray[Any]:
            return np.asarray(store.read_array(case_id, ARRAY))

        return lambda row: tokens(cases[row])[places[row]].copy()


@dataclass(frozen=True)
class PatchUnit:
    """The support slices of one case."""

    case_id: str
    rows: tuple[int, ...]
    """Their places in the case."""

    @property
    def id(self) -> str:
        """The case's id; the stage's key says which slices and which model."""
        return self.case_id


def patch_chunk(job: EmbedJob, unit: PatchUnit) -> ChunkReport:
    """Embed the patches of one case's support slices; runs in a worker."""
    workspace = Workspace.open(job.workspace)
    phases = Phases()
    with phases.reading():
        slices = workspace.case(unit.case_id).read_slices()
    with phases.computing():
        embedder = embedder_for(job.settings, job.preset, job.device)
        tokens = np.stack(
            run_in_batches(
                [slices[z] for z in unit.rows],
                job.settings.batch_size,
                lambda batch: embedder.embed_patches(batch, len(batch)),
            )
        )
    arrays = {ARRAY: tokens.astype(np.float16)}
    store = workspace.stage(STAGE, job.key)
    return finish_chunk(store, unit.id, len(unit.rows), arrays, phases=phases)


@task(name="patches", **STAGE_TASK)
def embed_patches(run: Run, key: str, table: pd.DataFrame) -> Patches:
    """Embed the patches of the support slices that have no trusted tokens yet.

    Args:
        run: the run.
        key: of the stored support set with its embeddings: same slices, same model.
        table: the support slices, sorted by case and place.

    Returns:
        Where the tokens are.
    """
    settings = run.settings
    with run.stage(STAGE) as stage:
        units = [
            PatchUnit(str(case_id), tuple(int(z) for z in group["z"]))
            for case_id, group in table.groupby("case_id", sort=True)
        ]
        job = EmbedJob(run.workspace.url, key, settings.embedding, settings.preset, settings.segmentation.device)
        todo = pending(run.workspace.stage(STAGE, key), units)
        stage.run_chunks(partial(patch_chunk, job), todo, done=len(units) - len(todo), unit="cases")
        stage.note = f"{len(table)} slices"
    return Patches(key)

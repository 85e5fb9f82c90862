"""Stage verify: hash again what earlier runs finished, and take back the records that no longer hold.

Records are the only proof that work is done (invariant 2), so a record that is taken back is all that it takes: the
stage that wrote it does that one chunk again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import cast

from prefect import task

from rfss_core.digest import digest_bytes
from rfss_core.errors import CorruptIndexError, CorruptStoreError, IndexNotFoundError
from rfss_core.retrieval.generations import Generations
from rfss_core.store import StageStore, Workspace
from rfss_core.store.records import FOLDER
from tasks.run import STAGE_TASK, ChunkReport, Run

STAGE = "verify"
PUBLISHED = "publish"
INDEXES = "indexes"

log = logging.getLogger("rfss")


@dataclass(frozen=True)
class VerifyUnit:
    """One completion record."""

    stage: str
    key: str
    chunk: str

    @property
    def id(self) -> str:
        """Where the record is."""
        return f"{self.stage}/{self.key}/{self.chunk}"


@dataclass(frozen=True)
class VerifyReport(ChunkReport):
    """What was found."""

    damaged: tuple[str, ...] = ()
    """Paths below the workspace."""


def verify_record(workspace_url: str, unit: VerifyUnit) -> VerifyReport:
    """Hash what a record vouches for, and take the record back where it is damaged; runs in a worker."""
    workspace = Workspace.open(workspace_url, create=False)
    store = workspace.stage(unit.stage, unit.key)
    if unit.chunk not in store.records([unit.chunk]):
        return VerifyReport(unit.id, 0, damaged=(f"{FOLDER}/{unit.id}.json",))
    damaged = store.verify(unit.chunk)
    if not damaged and unit.stage == PUBLISHED:
        damaged = _damaged_labels(workspace, store, unit)
    if damaged:
        store.distrust(unit.chunk)
    return VerifyReport(unit.id, 0, damaged=tuple(damaged))


def _damaged_labels(workspace: Workspace, store: StageStore, unit: VerifyUnit) -> list[str]:
    """Return the published label files that are not what their chunk's table says."""
    table = store.read_table(unit.chunk, "files")
    expected = {f"datasets/{unit.key}/{row['path']}": row["sha256"] for row in table.to_dict(orient="records")}
    found = workspace.files.read_many(expected)
    return [path for path, sha256 in expected.items() if path not in found or digest_bytes(found[path]) != sha256]


@task(name=STAGE, **STAGE_TASK)
def verify(run: Run) -> list[str]:
    """Hash all that the workspace's records vouch for: cases, outputs of every stage, published labels, indexes.

    Args:
        run: the run; what it finds missing afterwards it does again.

    Returns:
        The damaged or missing paths, below the workspace. SAM 2 memories are not among them: each is compared with its
        own sha256 whenever it is read.

    Raises:
        ExecutionError: the storage does not answer.
    """
    with run.stage(STAGE) as stage:
        files = run.workspace.files
        units = [
            VerifyUnit(name, key, record.removesuffix(".json"))
            for name in files.names(FOLDER)
            for key in files.names(f"{FOLDER}/{name}")
            for record in files.names(f"{FOLDER}/{name}/{key}")
            if record.endswith(".json")
        ]
        reports = stage.run_chunks(partial(verify_record, run.workspace.url), units, unit="records")
        damaged = sorted(path for report in reports for path in cast("VerifyReport", report).damaged)
        damaged += _damaged_indexes(run.workspace)
        for path in damaged:
            log.warning("damaged: %s; it is made again", path)
        stage.note = f"{len(units)} records, {len(damaged)} outputs damaged"
    return damaged


def _damaged_indexes(workspace: Workspace) -> list[str]:
    """Remove the approximate indexes that have a damaged file, and return their folders."""
    damaged = []
    for name in workspace.files.names(INDEXES):
        generations = Generations(workspace.files, f"{INDEXES}/{name}")
        try:
            for generation in map(generations.read, generations.names()):
                generations.check(generation)
        except (CorruptIndexError, IndexNotFoundError, CorruptStoreError):
            workspace.files.remove_tree(generations.prefix)
            damaged.append(generations.prefix)
    return damaged

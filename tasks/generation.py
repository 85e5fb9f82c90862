"""Stage index, where there are too many support slices for exact search: train, fill shards in workers, publish."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from rfss_core.digest import digest_json
from rfss_core.errors import IndexNotFoundError, StoreError
from rfss_core.retrieval.building import draw_sample, finish, shard_ranges
from rfss_core.retrieval.generations import Generation, Generations, Shard, Trained
from rfss_core.retrieval.index_plan import plan_index
from rfss_core.retrieval.inverted_lists import build_shard, train
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import ArraySource
from rfss_core.retrieval.tuning import hold_out
from rfss_core.settings import IndexSettings
from rfss_core.settings.index import PLACING
from rfss_core.store import Workspace
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.phases import Phases
from tasks.run import ChunkReport, Run, Stage

Part = TypeVar("Part", Trained, Shard)


@dataclass(frozen=True)
class StoredIndex:
    """A published generation over the support set's embeddings, and what was measured on it."""

    prefix: str
    generation: str
    kind: str
    shards: int
    k: int
    recall: float
    """Share of the true k nearest that the unfiltered search finds."""
    filtered_recall: float
    """The least such share under the filters that were measured."""
    target: float
    settings: IndexSettings

    @property
    def warning(self) -> str:
        """One sentence where the target was not reached, else nothing."""
        if min(self.recall, self.filtered_recall) >= self.target:
            return ""
        return (
            f"the {self.kind} index finds {self.recall:.4f} of the true {self.k} nearest support slices, and "
            f"{self.filtered_recall:.4f} under a filter; the target is {self.target:g}: leave index.nprobe out, or "
            "choose a finer index.kind"
        )


@dataclass(frozen=True)
class ShardUnit:
    """A run of the support set's rows, and the chunks that hold its cases' embeddings."""

    id: str
    first: int
    last: int
    embed_chunks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ShardJob:
    """What every worker needs; small and picklable."""

    workspace: str
    embed_key: str
    support_stage: str
    support_key: str
    prefix: str
    trained: Trained
    settings: IndexSettings


def open_stored(workspace_url: str, stored: StoredIndex | None, threads: int | None = None) -> ShardedIndex | None:
    """Open the stored index of a support set, memory-mapped; None where the support set is searched exactly."""
    if stored is None:
        return None
    generations = Generations(Workspace.open(workspace_url).files, stored.prefix, stored.settings.cache)
    return ShardedIndex(generations, generations.read(stored.generation), stored.settings, threads)


def store_index(
    run: Run, stage: Stage, support_key: str, table: pd.DataFrame, embeddings: Embeddings, k: int
) -> StoredIndex | None:
    """Publish an approximate index over the support set, unless it is small enough to be searched exactly.

    What an interrupted attempt trained and filled is used again.

    Args:
        run: the run.
        stage: stage index, begun.
        support_key: where the support set is stored.
        table: its slices, in the order of the index's rows.
        embeddings: the slices' embeddings.
        k: neighbours that recall is tuned at.

    Returns:
        The published generation's description; None for an exact search.

    Raises:
        SettingsError: too few support slices for the index kind that was asked for.
        ExecutionError: a shard failed for good.
    """
    settings = run.settings.index
    plan = plan_index(len(table), settings)
    if plan.kind == "flat":
        return None
    chosen = settings.model_dump(mode="json", exclude=set(PLACING))
    key = digest_json([support_key, embeddings.key, chosen, settings.shard_rows, k])[:16]
    generations = Generations(run.workspace.files, f"indexes/{key}", settings.cache)
    try:
        generation = generations.read()
    except IndexNotFoundError:
        patients = table["patient"].factorize()[0].astype(np.int64)
        held = hold_out(patients, settings.tune_queries, settings.seed)
        trained = _remembered(generations, "trained", Trained)
        if trained is None:
            source = ArraySource(run.workspace.stage(stage.name, support_key).read_array("support", "embeddings"))
            trained = train(*draw_sample(source, plan, held, settings.seed), plan, settings, generations)
            _remember(generations, "trained", trained)
        job = ShardJob(
            run.workspace.url, embeddings.key, stage.name, support_key, generations.prefix, trained, settings
        )
        units = _units(table, embeddings, settings, trained)
        todo = [unit for unit in units if _remembered(generations, unit.id, Shard) is None]
        stage.run_chunks(partial(fill_shard, job), todo, done=len(units) - len(todo), unit="shards")
        shards = [shard for unit in units if (shard := _remembered(generations, unit.id, Shard)) is not None]
        generation = finish(trained, shards, held, settings, generations, k, run.settings.execution.threads)
    return _described(generation, generations, settings)


def fill_shard(job: ShardJob, unit: ShardUnit) -> ChunkReport:
    """Fill one shard from the embeddings' Zarr chunks; runs in a worker."""
    phases = Phases()
    workspace = Workspace.open(job.workspace)
    with phases.reading():
        table = workspace.stage(job.support_stage, job.support_key).read_table("support", "slices")
        vectors = _vectors(workspace, job.embed_key, table.iloc[unit.first : unit.last], dict(unit.embed_chunks))
    generations = Generations(workspace.files, job.prefix, job.settings.cache)
    with phases.computing():
        shard = build_shard(vectors, unit.first, job.trained, generations, job.settings)
    with phases.writing():
        _remember(generations, unit.id, shard)
    return ChunkReport(unit.id, len(vectors), phases.read_s, phases.compute_s, phases.write_s)


def _vectors(
    workspace: Workspace, embed_key: str, rows: pd.DataFrame, chunk_of_case: dict[str, str]
) -> npt.NDArray[np.float16]:
    stored = workspace.stage(EMBED_STAGE, embed_key)
    return np.concatenate(
        [
            stored.read_array(chunk_of_case[str(case_id)], str(case_id))[group["z"].to_numpy()]
            for case_id, group in rows.groupby("case_id", sort=True)
        ]
    )


def _units(table: pd.DataFrame, embeddings: Embeddings, settings: IndexSettings, trained: Trained) -> list[ShardUnit]:
    where = embeddings.chunk_of_case
    mark = trained.file.sha256[:8]
    units = []
    for first, last in shard_ranges(len(table), settings.shard_rows):
        cases = table["case_id"].iloc[first:last].unique()
        chunks = tuple((str(case_id), where[str(case_id)]) for case_id in cases)
        units.append(ShardUnit(f"shard-{mark}-{first:010d}", first, last, chunks))
    return units


def _remember(generations: Generations, name: str, part: Trained | Shard) -> None:
    generations.files.write_bytes(f"{generations.prefix}/built/{name}.json", part.model_dump_json().encode())


def _remembered(generations: Generations, name: str, kind: type[Part]) -> Part | None:
    """Return what an earlier attempt built, if its files are still there and whole."""
    path = f"{generations.prefix}/built/{name}.json"
    if not generations.files.exists(path):
        return None
    try:
        part = kind.model_validate_json(generations.files.read_bytes(path))
        stored = (part.file,) if isinstance(part, Trained) else (part.lists, part.vectors)
        for one in stored:
            generations.path(one)
    except (ValidationError, StoreError):
        return None
    return part


def _described(generation: Generation, generations: Generations, settings: IndexSettings) -> StoredIndex:
    tuning = generation.tuning
    return StoredIndex(
        prefix=generations.prefix,
        generation=generation.id,
        kind=generation.trained.kind,
        shards=len(generation.shards),
        k=tuning.k,
        recall=tuning.levels[0].recall,
        filtered_recall=min(level.recall for level in tuning.levels),
        target=tuning.target,
        settings=settings,
    )

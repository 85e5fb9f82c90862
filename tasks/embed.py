"""Stage embed: one DINOv2 vector for every slice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from prefect import task

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.embedding import Embedder
from rfss_core.imaging import Quarantined
from rfss_core.segmentation.batching import run_in_batches
from rfss_core.settings import EmbeddingSettings, PresetName
from rfss_core.store import Chunk, Manifest, Workspace, plan_chunks
from tasks.chunks import ChunkUnit, finish_chunk, survey
from tasks.models import embedder_for
from tasks.phases import Phases
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.served import SERVED, ServedCases, check_share, read_refused, refused_cases

STAGE = "embed"


@dataclass(frozen=True)
class EmbedJob:
    """What every worker of the stage needs; small and picklable."""

    workspace: str
    key: str
    settings: EmbeddingSettings
    preset: PresetName
    device: str


@dataclass(frozen=True)
class Embeddings:
    """Where the slices' embeddings are."""

    key: str
    chunks: tuple[Chunk, ...]
    model: str
    digest: str
    trained: bool
    refused: tuple[Quarantined, ...] = ()
    """Cases that could not be embedded."""
    refused_ids: frozenset[str] = frozenset()

    @property
    def chunk_of_case(self) -> dict[str, str]:
        """Return the chunk that holds each case's array, [Z, D] float16, named by the case."""
        return {case_id: chunk.id for chunk in self.chunks for case_id in chunk.case_ids}


def embed_chunk(job: EmbedJob, unit: ChunkUnit) -> ChunkReport:
    """Embed the slices of one chunk's cases; runs in a worker."""
    workspace = Workspace.open(job.workspace)
    arrays: dict[str, npt.NDArray[np.float16]] = {}
    served, phases, refusals = ServedCases(), Phases(), unit.refusals
    for case_id in unit.case_ids:
        case = workspace.case(case_id)
        if case_id in refusals:
            served.refuse(case, refusals[case_id].error)
            continue
        with phases.reading():
            slices = case.read_slices(*unit.rows)
        with phases.computing():
            embedder = embedder_for(job.settings, job.preset, job.device)
            arrays[case_id] = embed_slices(embedder, slices, job.settings.batch_size).astype(np.float16)
    if unit.probe is not None:
        return ChunkReport(unit.id, 0)
    store = workspace.stage(STAGE, job.key)
    tables = {SERVED: served.table()} if refusals else None
    report = finish_chunk(store, unit.id, unit.chunk.n_slices, arrays, tables, phases=phases, set_aside=unit.set_aside)
    return replace(report, quarantined=tuple(refused_cases(served.table()) if refusals else ()))


def embed_slices(embedder: Embedder, slices: npt.NDArray[np.float32], batch_size: int) -> npt.NDArray[np.float32]:
    """Return float32 [N, D]; batches that do not fit into memory are halved, down to one slice.

    Raises:
        ShortOfMemoryError: one slice alone does not fit.
    """
    return np.stack(run_in_batches(list(slices), batch_size, lambda batch: list(embedder.embed(batch, len(batch)))))


@task(name="embed", **STAGE_TASK)
def embed(run: Run, manifest: Manifest) -> Embeddings:
    """Embed every slice of the manifest that has no trusted embedding yet."""
    settings = run.settings
    with run.stage(STAGE) as stage:
        device = settings.segmentation.device
        embedder = embedder_for(settings.embedding, settings.preset, device)
        imaging = settings.imaging.model_dump(mode="json")
        key = digest_json({"model": embedder.digest, "imaging": imaging, "code": code_version("imaging", "embedding")})[
            :16
        ]
        chunks = plan_chunks(manifest.cases)
        store = run.workspace.stage(STAGE, key)
        units = [ChunkUnit(chunk) for chunk in chunks]
        found = survey(store, units, again=settings.execution.retry_quarantined)
        job = EmbedJob(run.workspace.url, key, settings.embedding, settings.preset, device)
        before = len(units) - len(found.todo)
        reports = stage.run_chunks(partial(embed_chunk, job), found.todo, done=before, isolating=True)
        stage.note = embedder.name if embedder.trained else f"{embedder.name}, untrained"
    refused = read_refused(store, found.set_aside + [report.chunk for report in reports if report.quarantined])
    check_share(run, "stage embed failed on", list(refused.values()), len(manifest.cases))
    model = (embedder.name, embedder.digest, embedder.trained)
    return Embeddings(key, tuple(chunks), *model, tuple(refused.values()), frozenset(refused))

"""Stage embed: one DINOv2 vector for every slice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from prefect import task

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.settings import EmbeddingSettings, PresetName
from rfss_core.store import Chunk, Manifest, Workspace, plan_chunks
from tasks.chunks import finish_chunk, pending
from tasks.models import embedder_for
from tasks.run import STAGE_TASK, ChunkReport, Run

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

    @property
    def chunk_of_case(self) -> dict[str, str]:
        """Return the chunk that holds each case's array, [Z, D] float16, named by the case."""
        return {case_id: chunk.id for chunk in self.chunks for case_id in chunk.case_ids}


def embed_chunk(job: EmbedJob, chunk: Chunk) -> ChunkReport:
    """Embed the slices of one chunk's cases; runs in a worker."""
    workspace = Workspace.open(job.workspace)
    embedder = embedder_for(job.settings, job.preset, job.device)
    arrays: dict[str, npt.NDArray[np.float16]] = {}
    read_s = compute_s = 0.0
    for case_id in chunk.case_ids:
        started = time.perf_counter()
        slices = workspace.case(case_id).read_slices()
        read_s += time.perf_counter() - started
        started = time.perf_counter()
        arrays[case_id] = embedder.embed(list(slices), job.settings.batch_size).astype(np.float16)
        compute_s += time.perf_counter() - started
    store = workspace.stage(STAGE, job.key)
    return finish_chunk(store, chunk.id, chunk.n_slices, arrays, read_s=read_s, compute_s=compute_s)


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
        todo = pending(store, chunks)
        job = EmbedJob(run.workspace.url, key, settings.embedding, settings.preset, device)
        stage.run_chunks(partial(embed_chunk, job), todo, done=len(chunks) - len(todo))
        stage.note = embedder.name if embedder.trained else f"{embedder.name}, untrained"
    return Embeddings(key, tuple(chunks), embedder.name, embedder.digest, embedder.trained)

"""Stage segment: retrieve, remember and segment every slice that has no label, and every held-out one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.code import code_version
from rfss_core.datasets import provenance_table
from rfss_core.digest import digest_json
from rfss_core.quality import SegmentedCase, case_signals
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.segmentation import Segmentation, Segmenter
from rfss_core.segmentation.factory import baseline_error
from rfss_core.segmentation.points import PointPromptSegmenter
from rfss_core.settings import BASELINES, PresetName, RetrievalSettings, SegmentationSettings
from rfss_core.store import Chunk, Manifest, StoredCase, Workspace, plan_chunks
from tasks.chunks import finish_chunk, pending
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.index import SupportIndex, open_support
from tasks.models import Network, network_for, point_segmenter_for, segmenter_for, segmenter_name
from tasks.run import STAGE_TASK, ChunkReport, Run

STAGE = "segment"


@dataclass(frozen=True)
class SegmentUnit:
    """One chunk, with where its cases' embeddings are and which of them are held out."""

    chunk: Chunk
    embed_chunks: tuple[str, ...]
    held_out: tuple[bool, ...]

    @property
    def id(self) -> str:
        """The chunk's id."""
        return self.chunk.id


@dataclass(frozen=True)
class SegmentJob:
    """What every worker of the stage needs; small, hashable and picklable."""

    workspace: str
    key: str
    embed_key: str
    index: SupportIndex
    preset: PresetName
    k: int
    seed: int
    retrieval: RetrievalSettings
    segmentation: SegmentationSettings
    network: Network | None = None
    """Trained on the support set, where the segmenter is a supervised baseline."""


@dataclass(frozen=True)
class Masks:
    """Where the pseudo-labels are."""

    key: str
    units: tuple[SegmentUnit, ...]
    model: str
    digest: str
    trained: bool

    def cases(self) -> Iterator[tuple[str, str, bool]]:
        """Yield (case id, chunk id, held out)."""
        for unit in self.units:
            for case_id, held_out in zip(unit.chunk.case_ids, unit.held_out, strict=True):
                yield case_id, unit.chunk.id, held_out


@dataclass
class _Query:
    case: StoredCase
    slices: npt.NDArray[np.float32]
    neighbours: list[Neighbours]
    ids: list[str]
    held_out: bool


@lru_cache(maxsize=1)
def _retrieval(job: SegmentJob) -> tuple[SupportSet, Retriever]:
    support = open_support(job.workspace, job.index)
    return support, Retriever(support, job.retrieval, job.seed)


def segment_chunk(job: SegmentJob, unit: SegmentUnit) -> ChunkReport:
    """Segment one chunk's cases; runs in a worker."""
    workspace = Workspace.open(job.workspace)
    segmenter = _segmenter(job.segmentation, job.preset, job.workspace, job.seed, job.network)
    voting = job.segmentation.model_copy(update={"segmenter": "label-fusion"})
    fusion = segmenter_for(voting, job.preset, job.workspace)
    support, _ = _retrieval(job)
    arrays: dict[str, npt.NDArray[Any]] = {}
    slice_rows: list[pd.DataFrame] = []
    case_rows: list[dict[str, Any]] = []
    read_s = compute_s = 0.0
    clock = time.perf_counter()
    for wave in _waves(job, unit, workspace):
        read_s += time.perf_counter() - clock
        clock = time.perf_counter()
        slices = [image for query in wave for image in query.slices]
        neighbours = [hit for query in wave for hit in query.neighbours]
        if isinstance(segmenter, PointPromptSegmenter):
            truths = [truth for query in wave for truth in query.case.read_labels()]
            found = segmenter.segment(slices, truths, support.class_values, keep_logits=False)
        else:
            # A wave holds whole cases, and a case's slices are in order.
            volumes = [len(query.slices) for query in wave]
            found = segmenter.segment(slices, neighbours, support, volumes=volumes)
        votes = fusion.segment(slices, neighbours, support)
        offset = 0
        for query in wave:
            span = slice(offset, offset + len(query.slices))
            offset = span.stop
            case_id = query.case.case_id
            arrays[f"{case_id}/labels"] = np.stack([result.labels for result in found[span]])
            if query.held_out:
                arrays[f"{case_id}/fusion"] = np.stack([result.labels for result in votes[span]])
            evidence = _Evidence(query, found[span], votes[span])
            slice_rows.append(evidence.provenance(support))
            case_rows.append({"case_id": case_id, **evidence.signals(support)})
        compute_s += time.perf_counter() - clock
        clock = time.perf_counter()
    store = workspace.stage(STAGE, job.key)
    tables = {"slices": pd.concat(slice_rows, ignore_index=True), "cases": pd.DataFrame(case_rows)}
    return finish_chunk(store, unit.id, unit.chunk.n_slices, arrays, tables, read_s=read_s, compute_s=compute_s)


def _segmenter(
    settings: SegmentationSettings, preset: PresetName, workspace: str, seed: int, network: Network | None
) -> Segmenter | PointPromptSegmenter:
    if network is not None:
        return network_for(network, settings.device)
    if settings.segmenter == "sam2-points":
        return point_segmenter_for(settings, preset, seed)
    return segmenter_for(settings, preset, workspace)


def _waves(job: SegmentJob, unit: SegmentUnit, workspace: Workspace) -> Iterator[list[_Query]]:
    """Read the chunk's cases in groups that fill the model's batches without holding the whole chunk."""
    _, retriever = _retrieval(job)
    embeddings = workspace.stage(EMBED_STAGE, job.embed_key)
    wave: list[_Query] = []
    for case_id, embed_chunk, held_out in zip(unit.chunk.case_ids, unit.embed_chunks, unit.held_out, strict=True):
        case = workspace.case(case_id)
        vectors = embeddings.read_array(embed_chunk, case_id).astype(np.float32)
        ids = [f"{case_id}:{z:05d}" for z in range(case.n_slices)]
        neighbours = retriever.search(vectors, ids, [case.patient] * len(ids), job.k)
        wave.append(_Query(case, case.read_slices(), neighbours, ids, held_out))
        if sum(len(query.ids) for query in wave) >= 2 * job.segmentation.batch_size:
            yield wave
            wave = []
    if wave:
        yield wave


class _Evidence:
    """What the segmenter and label fusion said about one case's slices."""

    def __init__(self, query: _Query, found: list[Segmentation], votes: list[Segmentation]) -> None:
        self._query = query
        self._labels = np.stack([result.labels for result in found])
        self._fusion = np.stack([result.labels for result in votes])
        self._object_score = np.stack([result.object_score for result in found])
        self._predicted_iou = np.stack([result.predicted_iou for result in found])

    def signals(self, support: SupportSet) -> dict[str, float]:
        """Return the case's label-free quality signals."""
        fewest = min(len(hit.distances) for hit in self._query.neighbours)
        return case_signals(
            SegmentedCase(
                labels=self._labels,
                classes=support.class_values,
                object_score=self._object_score,
                predicted_iou=self._predicted_iou,
                distances=np.stack([hit.distances[:fewest] for hit in self._query.neighbours]),
                fusion=self._fusion,
            )
        )

    def provenance(self, support: SupportSet) -> pd.DataFrame:
        """Return the case's provenance, one row a slice and class (invariant 6)."""
        hits = self._query.neighbours
        return provenance_table(
            case_id=self._query.case.case_id,
            classes=support.class_values,
            support_ids=[[support.ids[index] for index in hit.indices] for hit in hits],
            distances=[hit.distances for hit in hits],
            labels=self._labels,
            object_score=self._object_score,
            predicted_iou=self._predicted_iou,
        )


@task(name="segment", **STAGE_TASK)
def segment(
    run: Run,
    manifest: Manifest,
    embeddings: Embeddings,
    index: SupportIndex,
    case_ids: list[str],
    network: Network | None = None,
) -> Masks:
    """Segment the named cases that have no trusted masks yet.

    Args:
        run: the run.
        manifest: all cases.
        embeddings: the slices' embeddings.
        index: the support set.
        case_ids: what to segment; a baseline takes held-out cases alone.
        network: of a supervised baseline.

    Raises:
        SettingsError: a baseline was to label a case that is not held out.
    """
    settings = run.settings
    if settings.segmentation.segmenter in BASELINES and not set(case_ids) <= set(index.held_out_cases):
        raise baseline_error(settings.segmentation.segmenter)
    with run.stage(STAGE) as stage:
        segmenter = _segmenter(settings.segmentation, settings.preset, run.workspace.url, settings.seed, network)
        key = digest_json(
            {
                "embeddings": embeddings.key,
                "support": index.digest,
                "held_out": index.held_out_digest,
                "model": segmenter.digest,
                "network": network.key if network else None,
                "settings": settings.scientific(),
                "code": code_version(),
            }
        )[:16]
        chunks = plan_chunks(manifest.cases[manifest.cases["case_id"].isin(case_ids)])
        where = embeddings.chunk_of_case
        held_out = set(index.held_out_cases)
        units = [
            SegmentUnit(
                chunk,
                tuple(where[case_id] for case_id in chunk.case_ids),
                tuple(case_id in held_out for case_id in chunk.case_ids),
            )
            for chunk in chunks
        ]
        job = SegmentJob(
            run.workspace.url,
            key,
            embeddings.key,
            index,
            settings.preset,
            index.k,
            settings.seed,
            settings.retrieval,
            settings.segmentation,
            network,
        )
        todo = pending(run.workspace.stage(STAGE, key), units)
        stage.run_chunks(partial(segment_chunk, job), todo, done=len(units) - len(todo))
        name = segmenter_name(settings.segmentation, settings.preset)
        stage.note = name if segmenter.trained else f"{name}, untrained"
    return Masks(key, tuple(units), name, segmenter.digest, segmenter.trained)

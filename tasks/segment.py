"""Stage segment: retrieve, remember and segment every slice that has no label, and every held-out one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.code import code_version
from rfss_core.digest import digest_json
from rfss_core.errors import CaseError, TooFewSupportsError
from rfss_core.imaging import Quarantined
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.retrieval.metadata import filter_columns, unprefixed
from rfss_core.segmentation import Segmenter
from rfss_core.segmentation.factory import baseline_error
from rfss_core.segmentation.points import PointPromptSegmenter
from rfss_core.settings import BASELINES, EmbeddingSettings, PresetName, RetrievalSettings, SegmentationSettings
from rfss_core.settings.retrieval import Scalar
from rfss_core.store import Manifest, StoredCase, Workspace, plan_chunks
from rfss_core.store.manifest import slice_id
from tasks.chunks import ChunkUnit, finish_chunk, pending
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.evidence import EVIDENCE, LabelledCase
from tasks.generation import open_stored
from tasks.index import SupportIndex, open_support
from tasks.models import (
    Network,
    built_once,
    embedder_for,
    network_for,
    point_segmenter_for,
    segmenter_for,
    segmenter_name,
)
from tasks.phases import Phases
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.served import SERVED, ServedCases, read_served, refused_cases

STAGE = "segment"


@dataclass(frozen=True)
class SegmentUnit(ChunkUnit):
    """One chunk, with where its cases' embeddings are and which of them are held out."""

    embed_chunks: tuple[str, ...]
    held_out: tuple[bool, ...]
    matched: tuple[tuple[tuple[str, Scalar], ...], ...] = ()
    """For each case its values of the columns that the filter matches; empty where it matches none."""
    refused: frozenset[str] = frozenset()
    """Cases that could not be served; known once the chunk is done."""

    @property
    def id(self) -> str:
        """Digest of the chunk's input: the chunk's id, and the values that the filter matches."""
        return digest_json([self.chunk.id, self.matched])[:16] if self.matched else self.chunk.id

    def cases(self) -> Iterator[tuple[str, bool]]:
        """Yield (case id, held out) of the cases that were served."""
        for case_id, held_out in zip(self.chunk.case_ids, self.held_out, strict=True):
            if case_id not in self.refused:
                yield case_id, held_out


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
    embedding: EmbeddingSettings
    retrieval: RetrievalSettings
    segmentation: SegmentationSettings
    network: Network | None = None
    """Trained on the support set, where the segmenter is a supervised baseline."""
    gpu: bool = True
    """Whether exact retrieval may use FAISS's GPUs: ``index.gpu``."""


@dataclass(frozen=True)
class Masks:
    """Where the pseudo-labels are."""

    key: str
    units: tuple[SegmentUnit, ...]
    model: str
    digest: str
    trained: bool
    refused: tuple[Quarantined, ...] = ()
    """Cases that could not be served: by retrieval, or because the work failed on them."""
    underserved: int = 0
    """Cases with a slice that fewer than k support slices served, because patient and filter left no more."""
    fewest: int = 0
    """Support slices that served a slice of a case, at least."""

    def cases(self) -> Iterator[tuple[str, str, bool]]:
        """Yield (case id, unit id, held out) of the cases that have masks."""
        for unit in self.units:
            for case_id, held_out in unit.cases():
                yield case_id, unit.id, held_out


@dataclass
class _Query:
    case: StoredCase
    slices: npt.NDArray[np.float32]
    neighbours: list[Neighbours]
    ids: list[str]
    held_out: bool


@built_once(1)
def _retrieval(job: SegmentJob) -> tuple[SupportSet, Retriever]:
    support = open_support(job.workspace, job.index)
    stored = open_stored(job.workspace, job.index.stored)
    return support, Retriever(support, job.retrieval, job.seed, index=stored, gpu=job.gpu)


def segment_chunk(job: SegmentJob, unit: SegmentUnit) -> ChunkReport:
    """Segment one chunk's cases; runs in a worker."""
    workspace = Workspace.open(job.workspace)
    phases = Phases()
    with phases.computing():
        segmenter = _segmenter(job.segmentation, job.preset, job.workspace, job.seed, job.network)
        voting = job.segmentation.model_copy(update={"segmenter": "label-fusion"})
        fusion = segmenter_for(voting, job.preset, job.workspace)
        support, _ = _retrieval(job)
    arrays: dict[str, npt.NDArray[Any]] = {}
    slice_rows: list[pd.DataFrame] = []
    evidence_rows: list[pd.DataFrame] = []
    served, threshold = ServedCases(), job.segmentation.object_score_threshold
    for wave in _waves(job, unit, workspace, served, phases):
        with phases.computing():
            slices = [image for query in wave for image in query.slices]
            neighbours = [hit for query in wave for hit in query.neighbours]
            if isinstance(segmenter, PointPromptSegmenter):
                truths = [truth for query in wave for truth in query.case.read_labels(*unit.rows)]
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
                case = LabelledCase(case_id, query.neighbours, found[span], votes[span], support)
                arrays |= case.arrays(threshold, with_fusion=query.held_out)
                slice_rows.append(case.provenance())
                evidence_rows.append(case.evidence(threshold))
    if unit.probe is not None:
        return ChunkReport(unit.id, 0)
    store = workspace.stage(STAGE, job.key)
    tables = {
        "slices": pd.concat(slice_rows, ignore_index=True) if slice_rows else pd.DataFrame(),
        EVIDENCE: pd.concat(evidence_rows, ignore_index=True) if evidence_rows else pd.DataFrame(),
        SERVED: served.table(),
    }
    report = finish_chunk(store, unit.id, unit.chunk.n_slices, arrays, tables, phases=phases, set_aside=unit.set_aside)
    return replace(report, quarantined=tuple(refused_cases(tables[SERVED])))


def _segmenter(
    settings: SegmentationSettings, preset: PresetName, workspace: str, seed: int, network: Network | None
) -> Segmenter | PointPromptSegmenter:
    if network is not None:
        return network_for(network, settings.device)
    if settings.segmenter == "sam2-points":
        return point_segmenter_for(settings, preset, seed)
    return segmenter_for(settings, preset, workspace)


def _waves(
    job: SegmentJob, unit: SegmentUnit, workspace: Workspace, served: ServedCases, phases: Phases
) -> Iterator[list[_Query]]:
    """Read the chunk's cases in groups that fill the model's batches without holding the whole chunk.

    Says in ``served``, case by case, how many support slices serve it, or why none do.
    """
    embeddings = workspace.stage(EMBED_STAGE, job.embed_key)
    wave: list[_Query] = []
    refusals = unit.refusals
    matched = unit.matched or ((),) * len(unit.held_out)
    for case_id, embed_chunk, held_out, values in zip(
        unit.chunk.case_ids, unit.embed_chunks, unit.held_out, matched, strict=True
    ):
        if case_id not in unit.case_ids:
            continue
        case = workspace.case(case_id)
        if case_id in refusals:
            served.refuse(case, refusals[case_id].error)
            continue
        with phases.reading():
            vectors = embeddings.read_array(embed_chunk, case_id, slice(*unit.rows)).astype(np.float32)
            slices = case.read_slices(*unit.rows)
        try:
            with phases.computing():
                query = _retrieve(
                    job, case, slices, vectors, first=unit.rows[0], held_out=held_out, metadata=dict(values)
                )
        except (CaseError, TooFewSupportsError) as error:
            served.refuse(case, error)
            continue
        served.serve(case, query.neighbours)
        wave.append(query)
        if sum(len(query.ids) for query in wave) >= 2 * job.segmentation.batch_size:
            yield wave
            wave = []
    if wave:
        yield wave


def _retrieve(
    job: SegmentJob,
    case: StoredCase,
    slices: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    *,
    first: int,
    held_out: bool,
    metadata: dict[str, Scalar],
) -> _Query:
    _, retriever = _retrieval(job)
    ids = [slice_id(case.case_id, first + z) for z in range(len(slices))]
    # Only a query without a label may be served by slices of its own patient, and only where the settings say so.
    own = job.retrieval.filter.own_patient == "unlabelled" and not held_out
    patches = None
    if job.retrieval.needs_patches:
        embedder = embedder_for(job.embedding, job.preset, job.segmentation.device)
        # As stored for the support slices.
        patches = [one.astype(np.float16) for one in embedder.embed_patches(list(slices), job.embedding.batch_size)]
    neighbours = retriever.search(
        vectors,
        ids,
        [None if own else case.patient] * len(ids),
        job.k,
        metadata=[metadata] * len(ids),
        patches=patches,
        fewer=not job.index.exact_k,
    )
    return _Query(case, slices, neighbours, ids, held_out)


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

    Returns:
        Where the masks are, and which cases were set aside because they could not be served.

    Raises:
        SettingsError: a baseline was to label a case that is not held out.
        TooManyQuarantinedError: more of the cases were set aside than the settings allow.
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
                **({"index": index.stored.generation} if index.stored is not None else {}),
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
        matched = _matched(run, manifest)
        units = [
            SegmentUnit(
                chunk,
                tuple(where[case_id] for case_id in chunk.case_ids),
                tuple(case_id in held_out for case_id in chunk.case_ids),
                tuple(matched[case_id] for case_id in chunk.case_ids if matched),
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
            settings.embedding,
            settings.retrieval,
            settings.segmentation,
            network,
            settings.index.gpu,
        )
        store = run.workspace.stage(STAGE, key)
        todo = pending(store, units, again=settings.execution.retry_quarantined)
        stage.run_chunks(partial(segment_chunk, job), todo, done=len(units) - len(todo), isolating=True)
        name = segmenter_name(settings.segmentation, settings.preset)
        stage.note = name if segmenter.trained else f"{name}, untrained"
    served = read_served(run, store, [unit.id for unit in units])
    units = [replace(unit, refused=served.refused_ids & set(unit.chunk.case_ids)) for unit in units]
    return Masks(
        key,
        tuple(units),
        name,
        segmenter.digest,
        segmenter.trained,
        served.refused,
        underserved=sum(n < index.k for n in served.fewest),
        fewest=min(served.fewest, default=0),
    )


def _matched(run: Run, manifest: Manifest) -> dict[str, tuple[tuple[str, Scalar], ...]]:
    """Return each case's values of the columns that the filter matches; empty where it matches none."""
    settings = run.settings.retrieval
    names = settings.filter.match
    if not names:
        return {}
    table = filter_columns(manifest.cases, settings, run.pseudonyms)
    columns = unprefixed(table)
    values = [tuple((name, row[name]) for name in names) for row in columns.to_dict(orient="records")]
    return dict(zip(table["case_id"], values, strict=True))

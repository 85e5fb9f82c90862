"""Stage assess: signals of every pseudo-label's quality, and the metrics of the held-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.code import code_version
from rfss_core.datasets.origin import UNCERTAINTY
from rfss_core.digest import digest_json
from rfss_core.quality import METRICS_LIBRARY, CaseMeasurement, ClassMetric, case_metrics, slice_metrics
from rfss_core.quality.assessment import Assessor, PseudoLabelledCase
from rfss_core.quality.signals import CaseSignals
from rfss_core.quality.tables import ALL_CLASSES, WHOLE
from rfss_core.quality.voxels import VoxelPoint, voxel_counts, voxel_curve
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.settings import BASELINES, PresetName, QualitySettings, SegmentationSettings
from rfss_core.store import StageStore, Workspace
from tasks.chunks import finish_chunk, pending
from tasks.evidence import EVIDENCE
from tasks.index import SupportIndex, open_support
from tasks.models import built_once, segmenter_for
from tasks.phases import Phases
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.segment import STAGE as SEGMENT_STAGE
from tasks.segment import Masks, SegmentUnit

STAGE = "assess"
TOGETHER = 64
"""Slices that are probed in one go."""

_MEASURES = ("dice", "hd95", "presence", "iou", "surface_distance", "surface_dice", "volume_difference", "true_volume")


@dataclass(frozen=True)
class AssessJob:
    """What every worker of the stage needs."""

    workspace: str
    masks_key: str
    key: str
    index: SupportIndex
    preset: PresetName
    segmentation: SegmentationSettings
    quality: QualitySettings


@dataclass(frozen=True)
class AssessUnit:
    """A chunk of stage segment, as far as it has masks."""

    masks: SegmentUnit

    @property
    def id(self) -> str:
        """The chunk's id, or, where cases were set aside, a digest that names them: they may be served another time."""
        refused = sorted(self.masks.refused)
        return digest_json([self.masks.id, refused])[:16] if refused else self.masks.id


@dataclass(frozen=True)
class Assessment:
    """Where signals and metrics are."""

    key: str
    units: tuple[AssessUnit, ...]
    names: dict[int, str]

    def signals(self, run: Run) -> pd.DataFrame:
        """Return case_id, slice (-1: whole case), class (0: all), and one column a signal."""
        return self._read(run, "signals")

    def measurements(self, run: Run, patients: dict[str, str]) -> dict[str, tuple[CaseMeasurement, ...]]:
        """Return the held-out cases' metrics: of ``labels``, and of label fusion (``fusion``)."""
        table = self._read(run, "metrics")
        found: dict[str, tuple[CaseMeasurement, ...]] = {}
        for source in ("labels", "fusion"):
            own = table[table["source"] == source] if len(table) else table
            groups: list[tuple[Any, pd.DataFrame]] = list(own.groupby("case_id", sort=True)) if len(own) else []
            found[source] = tuple(self._measurement(str(case), rows, patients) for case, rows in groups)
        return found

    def voxels(self, run: Run) -> tuple[VoxelPoint, ...]:
        """Return what levels of uncertainty are worth on the held-out cases; empty where the segmenter has none."""
        table = self._read(run, "voxels")
        rows: list[dict[Any, Any]] = table.to_dict(orient="records")
        return voxel_curve(rows) if len(rows) else ()

    def _measurement(self, case: str, rows: pd.DataFrame, patients: dict[str, str]) -> CaseMeasurement:
        by_slice: dict[int, list[ClassMetric]] = {}
        for row in rows.to_dict(orient="records"):
            value = int(row["class"])
            metric = ClassMetric(value=value, name=self.names[value], **{name: row[name] for name in _MEASURES})
            by_slice.setdefault(int(row["slice"]), []).append(metric)
        whole = tuple(by_slice.pop(WHOLE))
        return CaseMeasurement(case, patients[case], whole, tuple(tuple(by_slice[z]) for z in sorted(by_slice)))

    def _read(self, run: Run, name: str) -> pd.DataFrame:
        store = run.workspace.stage(STAGE, self.key)
        tables = [table for unit in self.units if len(table := store.read_table(unit.id, name))]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


@task(name="assess", **STAGE_TASK)
def assess(run: Run, index: SupportIndex, masks: Masks, *, probes: bool = True) -> Assessment:
    """Find the signals of all pseudo-labels and the metrics of the held-out ones.

    Args:
        run: the run.
        index: the support set.
        masks: the pseudo-labels.
        probes: segment some slices again; a measurement that predicts nothing can do without.

    Returns:
        Where they are.
    """
    settings = run.settings
    probes = probes and settings.segmentation.segmenter not in BASELINES
    quality = settings.quality if probes else settings.quality.model_copy(update={"probe_share": 0.0})
    with run.stage(STAGE) as stage:
        key = digest_json(
            {
                "masks": masks.key,
                "classes": index.classes,
                "probe_share": quality.probe_share,
                "slice_metrics": quality.slice_metrics,
                "tolerance": quality.surface_tolerance,
                "metrics": METRICS_LIBRARY,
                "code": code_version("quality", "segmentation"),
            }
        )[:16]
        job = AssessJob(run.workspace.url, masks.key, key, index, settings.preset, settings.segmentation, quality)
        units = tuple(AssessUnit(unit) for unit in masks.units)
        todo = pending(run.workspace.stage(STAGE, key), units)
        stage.run_chunks(partial(assess_chunk, job), todo, done=len(units) - len(todo))
    return Assessment(key, units, dict(index.classes))


def assess_chunk(job: AssessJob, unit: AssessUnit) -> ChunkReport:
    """Assess one chunk's cases; runs in a worker."""
    workspace, masks, phases = Workspace.open(job.workspace), unit.masks, Phases()
    stored = workspace.stage(SEGMENT_STAGE, job.masks_key)
    with phases.computing():
        assessor = _assessor(job)
    signals: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    voxels: list[dict[str, Any]] = []
    with phases.reading():
        evidence = stored.read_table(masks.id, EVIDENCE)
    for names, cases in _waves(job, masks, workspace, stored, evidence, phases):
        with phases.computing():
            for case_id, found in zip(names, assessor.assess(cases), strict=True):
                signals += _signal_rows(case_id, found)
    with_logits = set(evidence.loc[evidence["core"].notna(), "case_id"]) if len(evidence) else set()
    for case_id, held_out in masks.cases():
        if held_out:
            with phases.computing():
                metrics += _metric_rows(job, workspace, stored, masks.id, case_id)
                if case_id in with_logits:
                    voxels += _voxel_rows(workspace, stored, masks.id, case_id)
    tables = {"signals": pd.DataFrame(signals), "metrics": pd.DataFrame(metrics), "voxels": pd.DataFrame(voxels)}
    return finish_chunk(workspace.stage(STAGE, job.key), unit.id, masks.chunk.n_slices, {}, tables, phases=phases)


@built_once(1)
def _support(workspace: str, index: SupportIndex) -> SupportSet:
    return open_support(workspace, index)


@built_once(1)
def _assessor(job: AssessJob) -> Assessor:
    support, share = _support(job.workspace, job.index), job.quality.probe_share
    # Without probes no model is loaded.
    segmenter = segmenter_for(job.segmentation, job.preset, job.workspace) if share > 0 else None
    return Assessor(support, segmenter, share)


def _waves(
    job: AssessJob,
    unit: SegmentUnit,
    workspace: Workspace,
    masks: StageStore,
    evidence: pd.DataFrame,
    phases: Phases,
) -> Iterator[tuple[list[str], list[PseudoLabelledCase]]]:
    """Read the chunk's cases in groups that fill the model's batches."""
    names: list[str] = []
    cases: list[PseudoLabelledCase] = []
    probing = job.quality.probe_share > 0
    with phases.reading():
        provenance = masks.read_table(unit.id, "slices")
        support = _support(job.workspace, job.index)
    for case_id, _ in unit.cases():
        with phases.reading():
            own = provenance[provenance["case_id"] == case_id] if probing else None
            case = PseudoLabelledCase(
                read_labels(masks, unit.id, case_id),
                evidence[evidence["case_id"] == case_id],
                list(workspace.case(case_id).read_slices()) if probing else (),
                neighbours_of(own, support) if own is not None else (),
            )
        names.append(case_id)
        cases.append(case)
        if sum(len(one.labels) for one in cases) * job.quality.probe_share >= TOGETHER:
            yield names, cases
            names, cases = [], []
    if cases:
        yield names, cases


def neighbours_of(provenance: pd.DataFrame, support: SupportSet) -> list[Neighbours]:
    """Return the support slices of each slice of one case, as its provenance names them.

    Args:
        provenance: the case's rows, ordered by slice, then class.
        support: the support set.
    """
    row_of = {name: row for row, name in enumerate(support.ids)}
    found = []
    for _, rows in provenance.groupby("slice", sort=True):
        by_class: dict[int, npt.NDArray[np.int64]] = {}
        distances: dict[int, float] = {}
        for row in rows.to_dict(orient="records"):
            own = [row_of[name] for name in row["support_ids"]]
            by_class[int(row["class"])] = np.array(own, dtype=np.int64)
            distances |= dict(zip(own, row["distances"], strict=True))
        same = all(np.array_equal(one, next(iter(by_class.values()))) for one in by_class.values())
        indices = np.array(list(distances), dtype=np.int64)
        found.append(
            Neighbours(indices, np.array(list(distances.values()), dtype=np.float32), None if same else by_class)
        )
    return found


def read_labels(masks: StageStore, chunk: str, case_id: str, name: str = "labels") -> npt.NDArray[np.uint8]:
    """Return a stored map of one case, [Z, H, W]: ``labels``, ``uncertainty`` or, for held-out cases, ``fusion``."""
    return np.asarray(masks.read_array(chunk, f"{case_id}/{name}"), dtype=np.uint8)


def _signal_rows(case_id: str, found: CaseSignals) -> list[dict[str, Any]]:
    rows = [(WHOLE, ALL_CLASSES, found.case)]
    rows += [(WHOLE, value, signals) for value, signals in found.by_class.items()]
    rows += [(z, ALL_CLASSES, signals) for z, signals in enumerate(found.by_slice)]
    return [{"case_id": case_id, "slice": z, "class": value, **signals} for z, value, signals in rows]


def _metric_rows(
    job: AssessJob, workspace: Workspace, masks: StageStore, chunk: str, case_id: str
) -> list[dict[str, Any]]:
    case, classes, tolerance = workspace.case(case_id), dict(job.index.classes), job.quality.surface_tolerance
    truth = case.read_labels()
    rows = []
    for source in ("labels", "fusion"):
        labels = read_labels(masks, chunk, case_id, source)
        levels: list[tuple[int, Sequence[ClassMetric]]] = [
            (WHOLE, case_metrics(labels, truth, classes, case.spacing, tolerance))
        ]
        if source == "labels" and job.quality.slice_metrics:
            levels += enumerate(slice_metrics(labels, truth, classes, case.spacing, tolerance))
        for z, metrics in levels:
            for metric in metrics:
                fields = asdict(metric)
                measures = {name: fields[name] for name in _MEASURES}
                rows.append({"case_id": case_id, "source": source, "slice": z, "class": metric.value, **measures})
    return rows


def _voxel_rows(workspace: Workspace, masks: StageStore, chunk: str, case_id: str) -> list[dict[str, Any]]:
    levels = read_labels(masks, chunk, case_id, UNCERTAINTY)
    counts = voxel_counts(levels, read_labels(masks, chunk, case_id), workspace.case(case_id).read_labels())
    return [{"case_id": case_id, **row} for row in counts]

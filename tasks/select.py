"""Stage select: which unlabelled slices to label next, from the embeddings alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.errors import InputError
from rfss_core.imaging import discover
from rfss_core.quality import Picture
from rfss_core.quality.coverage_plot import render_coverage
from rfss_core.quality.picture import render_picture
from rfss_core.retrieval import CoreSet, Coverage, DuplicateGroup, SlicePool, choose_core_set, near_duplicates
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.store import Manifest, StoredCase
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.worklist import CaseToLabel, ChosenSlice, CoveragePart, DuplicatesPart, Selection, Worklist

STAGE = "select"
PICTURES = 200
"""Only so many chosen slices, from the first, get a thumbnail."""
PICTURE_SIZE = 256
WHOLE_CASES = (
    "a label map counts as complete: where a chosen slice belongs to a volume, label all of its slices before giving "
    "it to `rfss label`"
)


@dataclass(frozen=True, eq=False)
class _Slices:
    """All slices of the manifest in its order."""

    table: pd.DataFrame
    """case_id, z, slice_id, patient, name, labelled."""
    pool: SlicePool


@task(name="select", **STAGE_TASK)
def choose_slices(run: Run, manifest: Manifest, embeddings: Embeddings, out: str) -> Selection:
    """Choose slices, look for near-duplicates, and write the worklist.

    Args:
        run: the run.
        manifest: all cases; the slices of labelled ones count as chosen.
        embeddings: the slices' embeddings.
        out: see :class:`tasks.worklist.Worklist`.

    Returns:
        What ``select.json`` holds.

    Raises:
        SettingsError: fewer slices than asked for can be chosen.
        InputError: every usable image has a label.
        CorruptStoreError: an embedding is not finite.
    """
    settings = run.settings.selection
    with run.stage(STAGE) as stage:
        stage.started(3, unit="steps")
        slices = _read(run, manifest, embeddings)
        core_set = choose_core_set(slices.pool, settings, run.settings.seed)
        stage.finished(ChunkReport("choose", 0))
        groups = None
        if settings.duplicate_distance is not None:
            groups = near_duplicates(slices.pool.vectors, slices.pool.patients, settings.duplicate_distance)
        stage.finished(ChunkReport("near-duplicates", 0))
        worklist = Worklist(out)
        chosen = _chosen(run, slices, core_set, worklist)
        selection = _selection(run, manifest, embeddings, slices, core_set, chosen, groups)
        plot = render_coverage(core_set.curve, core_set.random_curve, settings.objective)
        worklist.write(selection, plot, None if groups is None else _duplicate_table(slices.table, groups))
        stage.finished(ChunkReport("write", 0))
        stage.note = f"{len(chosen)} of {len(slices.table)} slices"
    return selection


def _read(run: Run, manifest: Manifest, embeddings: Embeddings) -> _Slices:
    cases = manifest.cases[["case_id", "name", "patient", "labelled"]]
    table = manifest.slices[["case_id", "z", "slice_id"]].merge(cases, on="case_id", how="left")
    if cases["labelled"].all():
        raise InputError(f"every usable image in '{run.settings.images}' has a label: nothing is left to choose from")
    store, where = run.workspace.stage(EMBED_STAGE, embeddings.key), embeddings.chunk_of_case
    stored: list[npt.NDArray[np.float16]] = [
        store.read_array(where[case_id], case_id) for case_id in table["case_id"].unique().tolist()
    ]
    vectors, bad = unit_vectors(np.concatenate(stored))
    if bad.size:
        raise InputError(
            f"the embedding of slice '{table['slice_id'][int(bad[0])]}' is not finite or is zero; check its pixels"
        )
    pool = SlicePool(vectors, table["slice_id"].tolist(), table["patient"].tolist(), table["labelled"].to_numpy(bool))
    return _Slices(table, pool)


def _chosen(run: Run, slices: _Slices, core_set: CoreSet, worklist: Worklist) -> list[ChosenSlice]:
    sources = _source_files(run)
    worklist.remove_pictures()
    cases: dict[str, StoredCase] = {}
    found = []
    for rank, row in enumerate(core_set.rows.tolist(), start=1):
        record = slices.table.iloc[row]
        case_id, z = str(record["case_id"]), int(record["z"])
        case = cases.setdefault(case_id, run.workspace.case(case_id))
        grid, distance = case.grid, float(core_set.distances[rank - 1])
        picture = None
        if rank <= PICTURES:
            shown = Picture(case.read_slices(z, z + 1)[0], str(record["slice_id"]), spacing=case.spacing[1:])
            name = f"{rank:04d}_{case_id}_{z:05d}.png"
            picture = worklist.add_picture(name, render_picture(shown, {}, PICTURE_SIZE))
        found.append(
            ChosenSlice(
                rank=rank,
                case=str(record["name"]),
                slice=z,
                slice_id=str(record["slice_id"]),
                patient=str(record["patient"]),
                source=sources[case_id],
                source_axis=grid.axes[0],
                source_slice=case.n_slices - 1 - z if grid.flips[0] else z,
                distance=distance if np.isfinite(distance) else None,
                covers=int(core_set.covers[rank - 1]),
                picture=picture,
            )
        )
    return found


def _source_files(run: Run) -> dict[str, str]:
    """Return the file of each case, the folder of a DICOM series; nothing where case ids are pseudonyms."""
    found = discover(run.settings.images, run.settings.labels, run.settings.imaging, run.pseudonyms).cases
    if run.pseudonyms is not None:
        return dict.fromkeys((case.case_id for case in found), "")
    return {case.case_id: str(case.image if isinstance(case.image, Path) else case.image[0].parent) for case in found}


def _selection(
    run: Run,
    manifest: Manifest,
    embeddings: Embeddings,
    slices: _Slices,
    core_set: CoreSet,
    chosen: list[ChosenSlice],
    groups: list[DuplicateGroup] | None,
) -> Selection:
    settings, table = run.settings, slices.table
    duplicates, warnings = None, []
    if not embeddings.trained:
        warnings.append(f"{embeddings.model} is untrained: its distances mean little")
    if any(case.n_slices > 1 for case in manifest.rows() if not case.labelled):
        warnings.append(WHOLE_CASES)
    if groups is not None and settings.selection.duplicate_distance is not None:
        across = [group for group in groups if group.across_patients]
        duplicates = DuplicatesPart(
            distance=settings.selection.duplicate_distance,
            groups=len(groups),
            slices=sum(len(group.rows) for group in groups),
            across_patients=len(across),
        )
        if across:
            listed = ", ".join(table["slice_id"].iloc[across[0].rows[:3]])
            warnings.append(
                f"{len(across)} groups of near-duplicates span patients (first: {listed}): one image under two names "
                "would leak between support set and held-out cases; see select-duplicates.csv"
            )
    return Selection(
        n=settings.selection.n,
        objective=settings.selection.objective,
        spread=settings.selection.spread,
        per_patient=settings.selection.per_patient,
        seed=settings.seed,
        preset=settings.preset,
        model=embeddings.model,
        model_digest=embeddings.digest,
        slices=len(table),
        labelled_slices=int(table["labelled"].sum()),
        cases=len(manifest.cases),
        patients=int(table.loc[~table["labelled"], "patient"].nunique()),
        chosen=chosen,
        cases_to_label=_cases_to_label(chosen),
        coverage=[_coverage(point) for point in core_set.curve],
        random_coverage=[_coverage(point) for point in core_set.random_curve],
        random_draws=settings.selection.random_draws,
        duplicates=duplicates,
        quarantined=len(manifest.quarantine),
        warnings=warnings,
    )


def _cases_to_label(chosen: list[ChosenSlice]) -> list[CaseToLabel]:
    found: dict[str, CaseToLabel] = {}
    for item in chosen:
        entry = found.setdefault(
            item.case,
            CaseToLabel(case=item.case, patient=item.patient, source=item.source, rank=item.rank, slices=[], covers=0),
        )
        entry.slices.append(item.slice)
        entry.covers += item.covers
    return list(found.values())


def _coverage(point: Coverage) -> CoveragePart:
    # The order of summation may move the last digits.
    return CoveragePart(
        chosen=point.chosen, mean=round(point.mean, 6), p95=round(point.p95, 6), maximum=round(point.maximum, 6)
    )


def _duplicate_table(table: pd.DataFrame, groups: list[DuplicateGroup]) -> pd.DataFrame:
    parts = [
        table.iloc[group.rows][["slice_id", "name", "z", "patient"]]
        .rename(columns={"name": "case", "z": "slice"})
        .assign(group=number, across_patients=group.across_patients)
        for number, group in enumerate(groups, start=1)
    ]
    columns = ["group", "across_patients", "slice_id", "case", "slice", "patient"]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)

"""Stage publish: pseudo-labels on their sources' own grids, as an immutable data set and as ``pseudo_labels/``."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from prefect import task

from rfss_core.code import code_version
from rfss_core.datasets import DatasetEntry, DatasetManifest, write_dataset
from rfss_core.datasets.origin import LATEST, ORIGIN, PUBLISH_STAGE
from rfss_core.digest import digest_bytes, digest_json
from rfss_core.errors import TooFewSupportsError
from rfss_core.store import Manifest, Workspace
from rfss_core.store.files import Files
from tasks.chunks import finish_chunk, pending
from tasks.embed import Embeddings
from tasks.index import SupportIndex
from tasks.label_files import encoded
from tasks.phases import Phases
from tasks.quality_outcome import QualityOutcome
from tasks.run import STAGE_TASK, ChunkReport, Run
from tasks.segment import STAGE as SEGMENT_STAGE
from tasks.segment import Masks, SegmentUnit

STAGE = PUBLISH_STAGE
CURRENT = "pseudo_labels"


@dataclass(frozen=True)
class PublishJob:
    """What every worker of the stage needs."""

    workspace: str
    masks_key: str
    key: str
    folder: str
    """Folder of the data set, below the workspace."""


def fingerprint(run: Run, manifest: Manifest, embeddings: Embeddings, index: SupportIndex, masks: Masks) -> str:
    """Return the digest of all that the pseudo-labels depend on (invariant 3)."""
    # Whether a case ends a worker is the machine's business: it does not follow from the other parts.
    failed = sorted(case.name for case in masks.refused if case.reason != TooFewSupportsError.reason)
    return digest_json(
        {
            "inputs": manifest.digest,
            "support": index.digest,
            "held_out": index.held_out_digest,
            "metadata": index.metadata_digest,
            "weights": [embeddings.digest, masks.digest],
            "settings": run.settings.scientific(),
            "code": code_version(),
            **({"set_aside": failed} if failed else {}),
        }
    )


def publish_chunk(job: PublishJob, unit: SegmentUnit) -> ChunkReport:
    """Write the pseudo-labels of one chunk's unlabelled cases; runs in a worker."""
    workspace = Workspace.open(job.workspace)
    masks = workspace.stage(SEGMENT_STAGE, job.masks_key)
    phases = Phases()
    rows = []
    for case_id, held_out in unit.cases():
        if held_out:
            continue
        case = workspace.case(case_id)
        with phases.reading():
            labels = np.asarray(masks.read_array(unit.id, f"{case_id}/labels"), dtype=np.uint8)
        with phases.writing():
            path = f"{case.name}{case.grid.suffix}"
            data = encoded(labels, case.grid)
            workspace.files.write_bytes(f"{job.folder}/{path}", data)
        rows.append({"case": case_id, "path": path, "sha256": digest_bytes(data), "slices": case.n_slices})
    table = pd.DataFrame(rows, columns=["case", "path", "sha256", "slices"])
    store = workspace.stage(STAGE, job.key)
    return finish_chunk(store, unit.id, int(table["slices"].sum()), {}, {"files": table}, phases=phases)


@task(name="publish", **STAGE_TASK)
def publish(
    run: Run, manifest: Manifest, embeddings: Embeddings, index: SupportIndex, masks: Masks, quality: QualityOutcome
) -> DatasetManifest:
    """Write the data set's files and manifest, then move ``pseudo_labels`` to it.

    The data set's folder is never written again once its manifest stands; ``pseudo_labels`` is the latest run's.
    """
    settings = run.settings
    mark = fingerprint(run, manifest, embeddings, index, masks)
    name = settings.dataset or default_name(settings.images)
    key = digest_json([mark, name, settings.quality.model_dump(mode="json")])[:16]
    folder = f"datasets/{key}"
    store, files = run.workspace.stage(STAGE, key), run.workspace.files
    with run.stage(STAGE) as stage:
        units = [unit for unit in masks.units if not all(unit.held_out)]
        todo = pending(store, units)
        known = {unit.id for unit in todo}
        # A record vouches for its table; the label files that it lists are checked here.
        for unit in units:
            if unit.id not in known:
                listed = store.read_table(unit.id, "files")["path"]
                if not all(files.exists(f"{folder}/{path}") for path in listed):
                    todo.append(unit)
        job = PublishJob(run.workspace.url, masks.key, key, folder)
        stage.run_chunks(partial(publish_chunk, job), todo, done=len(units) - len(todo))
        written = pd.concat([store.read_table(unit.id, "files") for unit in units], ignore_index=True)
        cases = manifest.cases.set_index("case_id")
        entries = [
            DatasetEntry(
                case=row["case"],
                name=str(cases.at[row["case"], "name"]),
                patient=str(cases.at[row["case"], "patient"]),
                label_path=row["path"],
                sha256=row["sha256"],
                source_digest=str(cases.at[row["case"], "source_digest"]),
                decision=quality.decisions[row["case"]],
                predicted_dice=quality.prediction.predicted[row["case"]],
                lower=quality.prediction.lower[row["case"]],
                slices=row["slices"],
            )
            for row in written.to_dict(orient="records")
        ]
        meta = {"fingerprint": mark, "preset": settings.preset, "settings": settings.scientific(), "k": index.k}
        meta["masks"] = masks.key
        if run.pseudonyms is not None:
            meta["privacy"] = {"case_ids": "salted", "salt": run.pseudonyms.fingerprint}
        # Beside the manifest, not in it: the same pseudo-labels are the same data set wherever their images lie.
        origin = {"images": settings.images if "://" in settings.images else os.path.abspath(settings.images)}  # noqa: PTH100
        files.write_bytes(f"{folder}/{ORIGIN}", (json.dumps(origin) + "\n").encode())
        dataset = write_dataset(f"{run.workspace.url}/{folder}", name, entries, dict(index.classes), meta)
        _make_current(files, folder, [entry.label_path for entry in dataset.entries])
        files.write_bytes(LATEST, f"{folder}\n".encode())
        stage.note = f"{len(entries)} pseudo-labels"
    return dataset


def default_name(images: str) -> str:
    """Return a data set's name for a folder of images: the folder's own, or its parent's where that says nothing."""
    parts = [part for part in re.split(r"[/\\]+", images) if part and not any(mark in part for mark in "*?[")]
    telling = [part for part in parts if part.lower() not in ("images", "imagestr", "imagests", "..", ".")]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", telling[-1] if telling else "").strip("-._")
    return slug[:100] or "dataset"


def _make_current(files: Files, folder: str, paths: list[str]) -> None:
    """Let ``pseudo_labels`` hold these files and nothing else."""
    here = files.local_path(CURRENT)
    if here is None:
        files.remove_tree(CURRENT)
        for path in paths:
            files.write_bytes(f"{CURRENT}/{path}", files.read_bytes(f"{folder}/{path}"))
        return
    source = files.local_path(folder)
    assert source is not None
    fresh, old = here.with_name(f".{CURRENT}.new"), here.with_name(f".{CURRENT}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in paths:
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # A copy, not a link: whoever corrects a mask in pseudo_labels/ must not change the registered data set.
        shutil.copyfile(source / path, target)
    if here.exists():
        here.replace(old)
    fresh.replace(here)
    shutil.rmtree(old, ignore_errors=True)

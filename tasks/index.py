"""Stage index: split the labelled patients, choose the support slices, and store them for the workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from prefect import task

from rfss_core.digest import digest_json
from rfss_core.errors import SettingsError
from rfss_core.presets import PRESETS
from rfss_core.quality import Split
from rfss_core.retrieval import SupportSet
from rfss_core.store import Manifest, Workspace
from tasks.chunks import finish_chunk
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.run import STAGE_TASK, ChunkReport, Run

STAGE = "index"


@dataclass(frozen=True)
class SupportIndex:
    """Where the support set is, and who is kept out of it."""

    key: str
    digest: str
    """Digest of the support slices' pixels, masks, patients and classes."""
    classes: tuple[tuple[int, str], ...]
    n_slices: int
    support_cases: tuple[str, ...]
    held_out_cases: tuple[str, ...]
    k: int

    @property
    def held_out_digest(self) -> str:
        """Digest of the list of held-out cases."""
        return digest_json(list(self.held_out_cases))


def open_support(workspace_url: str, index: SupportIndex) -> SupportSet:
    """Open the stored support set; images and masks are read when asked for."""
    workspace = Workspace.open(workspace_url)
    stage = workspace.stage(STAGE, index.key)
    support = _support_set(workspace, stage.read_table("support", "slices"), dict(index.classes))
    return support.with_embeddings(stage.read_array("support", "embeddings"))


def _support_set(workspace: Workspace, table: pd.DataFrame, classes: dict[int, str]) -> SupportSet:
    cases, rows = table["case_id"].tolist(), table["z"].tolist()
    return SupportSet(
        ids=table["slice_id"].tolist(),
        patients=table["patient"].tolist(),
        classes=classes,
        read_image=lambda item: workspace.case(cases[item]).read_slices(rows[item], rows[item] + 1)[0],
        read_mask=lambda item: workspace.case(cases[item]).read_labels(rows[item], rows[item] + 1)[0],
        class_presence=[[value in present for value in sorted(classes)] for present in table["classes"]],
        item_digests=table["digest"].tolist(),
    )


@task(name="index", **STAGE_TASK)
def build_index(run: Run, manifest: Manifest, embeddings: Embeddings, split: Split) -> SupportIndex:
    """Store the support set of this run.

    Args:
        run: the run.
        manifest: all cases.
        embeddings: the slices' embeddings.
        split: patients of the support set and held-out patients.

    Returns:
        The stored support set's description.

    Raises:
        SettingsError: a k above the size of the support set.
    """
    settings = run.settings
    with run.stage(STAGE) as stage:
        labelled = manifest.cases[manifest.cases["labelled"]]
        support_cases = labelled[labelled["patient"].isin(split.support)]
        held_out = labelled[labelled["patient"].isin(split.held_out)]
        values = sorted({int(value) for present in labelled["classes"] for value in present})
        names = settings.imaging.classes or {}
        classes = {value: names.get(value, str(value)) for value in values}
        table = manifest.slices[manifest.slices["case_id"].isin(support_cases["case_id"])]
        table = table.merge(support_cases[["case_id", "patient", "pixel_digest", "label_digest"]], on="case_id")
        table = table.sort_values(["case_id", "z"]).reset_index(drop=True)
        # The settings decide how stored pixels become a slice's values.
        imaging = settings.imaging.model_dump(mode="json")
        table["digest"] = [
            digest_json([row["pixel_digest"], row["label_digest"], row["z"], imaging])
            for row in table.to_dict(orient="records")
        ]
        if settings.retrieval.support_slices is not None:
            drawn = _support_set(run.workspace, table, classes).draw(settings.retrieval.support_slices, settings.seed)
            table = table.iloc[drawn].reset_index(drop=True)
        if settings.k is not None and settings.k > len(table):
            raise SettingsError(
                f"k is {settings.k}, but the support set has only {len(table)} slices; lower --k, or label more"
            )
        where, stored = embeddings.chunk_of_case, run.workspace.stage(EMBED_STAGE, embeddings.key)
        vectors = np.concatenate(
            [
                stored.read_array(where[str(case_id)], str(case_id))[group["z"].to_numpy()]
                for case_id, group in table.groupby("case_id", sort=True)
            ]
        )
        digest = digest_json([table["digest"].tolist(), table["patient"].tolist(), sorted(classes.items())])
        key = digest_json([digest, embeddings.key])[:16]
        store = run.workspace.stage(STAGE, key)
        stage.started(1, unit="support set")
        report = ChunkReport("support", len(table))
        if store.trusted("support", "support") is None:
            columns = table[["slice_id", "case_id", "z", "patient", "classes", "digest"]]
            report = finish_chunk(store, "support", len(table), {"embeddings": vectors}, {"slices": columns})
        stage.finished(report)
        stage.note = f"{len(table)} support slices of {len(split.support)} patients"
    return SupportIndex(
        key,
        digest,
        tuple(classes.items()),
        len(table),
        tuple(support_cases["case_id"]),
        tuple(held_out["case_id"]),
        settings.k or min(PRESETS[settings.preset].k, len(table)),
    )

"""Stage index: split the labelled patients, choose the support slices, and store them for the workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from prefect import task

from rfss_core.digest import digest_json
from rfss_core.errors import SettingsError
from rfss_core.imaging.case import REVIEWED_SOURCE
from rfss_core.presets import PRESETS
from rfss_core.quality import Split
from rfss_core.retrieval import SupportSet
from rfss_core.retrieval.filter import SupportFilter
from rfss_core.retrieval.index_plan import plan_index
from rfss_core.retrieval.metadata import filter_columns, unprefixed
from rfss_core.store import Manifest, Workspace
from tasks.chunks import finish_chunk
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.generation import StoredIndex, store_index
from tasks.patches import Patches, embed_patches
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
    exact_k: bool = False
    """Whether the user asked for this k: a query with fewer supports is then set aside, not served by fewer."""
    metadata_digest: str = ""
    """Digest of what the filter compares of all cases, queries too."""
    patches: Patches | None = None
    """The support slices' patch tokens, where the strategy compares them."""
    stored: StoredIndex | None = None
    """The approximate index; None where the support set is searched exactly."""

    @property
    def held_out_digest(self) -> str:
        """Digest of the list of held-out cases."""
        return digest_json(list(self.held_out_cases))


def with_patches(run: Run, index: SupportIndex) -> SupportIndex:
    """Run stage patches where the strategy compares patch tokens, and return the index that knows where they are."""
    if not run.settings.retrieval.needs_patches:
        return index
    return replace(index, patches=embed_patches(run, index.key, _stored_slices(run.workspace, index)))


def _stored_slices(workspace: Workspace, index: SupportIndex) -> pd.DataFrame:
    """Return the stored support slices, sorted by case and place."""
    return workspace.stage(STAGE, index.key).read_table("support", "slices")


def open_support(workspace_url: str, index: SupportIndex) -> SupportSet:
    """Open the stored support set; images, masks and patch tokens are read when asked for."""
    workspace = Workspace.open(workspace_url)
    stage = workspace.stage(STAGE, index.key)
    table = _stored_slices(workspace, index)
    support = _support_set(workspace, table, dict(index.classes))
    if index.stored is None:
        support = support.with_embeddings(stage.read_array("support", "embeddings"))
    return support if index.patches is None else support.with_patches(index.patches.reader(workspace, table))


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
        metadata=unprefixed(table),
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
        SettingsError: a filter that names what the support set does not have, or that leaves fewer slices than k.
    """
    settings = run.settings
    with run.stage(STAGE) as stage:
        labelled = manifest.cases[manifest.cases["labelled"]]
        support_cases = labelled[labelled["patient"].isin(split.support)]
        # What was picked for review is no random sample: nothing is measured on it.
        held_out = labelled[labelled["patient"].isin(split.held_out) & (labelled["label_source"] != REVIEWED_SOURCE)]
        values = sorted({int(value) for present in labelled["classes"] for value in present})
        names = settings.imaging.classes or {}
        classes = {value: names.get(value, str(value)) for value in values}
        table = _support_table(run, manifest, support_cases, classes)
        left = _left_by_filter(run, table, classes)
        content = [table["digest"].tolist(), table["patient"].tolist(), sorted(classes.items())]
        metadata = unprefixed(table).to_dict(orient="list")
        digest = digest_json([*content, metadata] if metadata else content)
        # A large support set's embeddings stay where they are: the stored index has them.
        exact = plan_index(len(table), settings.index).kind == "flat"
        key = digest_json([digest, embeddings.key] if exact else [digest, embeddings.key, "indexed"])[:16]
        store = run.workspace.stage(STAGE, key)
        stage.started(1, unit="support set")
        report = ChunkReport("support", len(table))
        if store.trusted("support", "support") is None:
            columns = table.drop(columns=["foreground", "pixel_digest", "label_digest"])
            arrays = {"embeddings": _vectors(run.workspace, table, embeddings)} if exact else {}
            report = finish_chunk(store, "support", len(table), arrays, {"slices": columns})
        stage.finished(report)
        k = settings.k or min(PRESETS[settings.preset].k, left)
        stored_index = store_index(run, stage, key, table, embeddings, k * settings.retrieval.candidates_a_support)
        stage.note = f"{len(table)} support slices of {len(split.support)} patients"
        if stored_index is not None:
            stage.note += f", {stored_index.kind} in {stored_index.shards} shards, recall {stored_index.recall:.4f}"
    return SupportIndex(
        key,
        digest,
        tuple(classes.items()),
        len(table),
        tuple(support_cases["case_id"]),
        tuple(held_out["case_id"]),
        k,
        exact_k=settings.k is not None,
        metadata_digest=_metadata_digest(run, manifest),
        stored=stored_index,
    )


def _vectors(workspace: Workspace, table: pd.DataFrame, embeddings: Embeddings) -> npt.NDArray[np.float16]:
    """Return the embeddings of the support slices, float16 [N, D], in their order."""
    where, stored = embeddings.chunk_of_case, workspace.stage(EMBED_STAGE, embeddings.key)
    return np.concatenate(
        [
            stored.read_array(where[str(case_id)], str(case_id))[group["z"].to_numpy()]
            for case_id, group in table.groupby("case_id", sort=True)
        ]
    )


def _support_table(run: Run, manifest: Manifest, support_cases: pd.DataFrame, classes: dict[int, str]) -> pd.DataFrame:
    """Return the support slices, with what the filter compares: all of the cases', or as many as the settings draw."""
    settings = run.settings
    table = manifest.slices[manifest.slices["case_id"].isin(support_cases["case_id"])]
    table = table.merge(support_cases[["case_id", "patient", "pixel_digest", "label_digest"]], on="case_id")
    table = table.merge(filter_columns(support_cases, settings.retrieval, run.pseudonyms), on="case_id")
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
    return table


def _left_by_filter(run: Run, table: pd.DataFrame, classes: dict[int, str]) -> int:
    """Return how many support slices the filter leaves, before any query's own patient and values are looked at."""
    settings = run.settings
    chosen = SupportFilter(settings.retrieval.filter, _support_set(run.workspace, table, classes))
    left, where = int(chosen.rows.sum()), chosen.describe()
    if left < (settings.k or 1):
        has = (
            f"only {left} of {len(table)} support slices are left where {where}"
            if where
            else (f"the support set has only {len(table)} slices")
        )
        raise SettingsError(
            f"k is {settings.k or PRESETS[settings.preset].k}, but {has}; lower --k, "
            f"{'widen the filter, ' if where else ''}or label more"
        )
    return left


def _metadata_digest(run: Run, manifest: Manifest) -> str:
    settings = run.settings.retrieval
    if not settings.filter.match:
        return ""
    return digest_json(filter_columns(manifest.cases, settings, run.pseudonyms).to_dict(orient="list"))

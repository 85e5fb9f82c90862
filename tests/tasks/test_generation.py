"""A support set too large for exact search: shards from the embeddings' chunks, resumed, opened by workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from indexes import clustered, queries

import tasks.generation as stage_index
from rfss_core.errors import ExecutionError
from rfss_core.events import ChunkFinished, Event, EventStream
from rfss_core.retrieval import FlatIndex
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.settings import LabelSettings
from rfss_core.store import Chunk, Workspace
from tasks.embed import STAGE as EMBED_STAGE
from tasks.embed import Embeddings
from tasks.execution import open_executor
from tasks.generation import StoredIndex, open_stored, store_index
from tasks.run import Run

CASES, SLICES = 60, 20


def settings_for(workspace: Path, **index: object) -> LabelSettings:
    values = {"kind": "ivf-sq8", "shard_rows": 250, "tune_queries": 64, "exact_rows": 900, **index}
    return LabelSettings.model_validate(
        {
            "images": "i",
            "labels": "l",
            "workspace": str(workspace),
            "index": values,
            "execution": {"workers": 2, "attempts": 1},
        }
    )


class Stored:
    """A workspace with the embeddings of 60 cases in two chunks, and a support set of most of their slices."""

    def __init__(self, folder: Path) -> None:
        self.workspace = Workspace.open(str(folder))
        self.vectors = clustered(CASES * SLICES)
        names = [f"case-{number:03d}" for number in range(CASES)]
        chunks = tuple(Chunk(name, tuple(names[a:b]), (b - a) * SLICES) for name, a, b in (("a", 0, 25), ("b", 25, 60)))
        arrays = dict(zip(names, self.vectors.reshape(CASES, SLICES, -1), strict=True))
        embed = self.workspace.stage(EMBED_STAGE, "e" * 16)
        for chunk in chunks:
            embed.write_chunk(chunk.id, {name: arrays[name] for name in chunk.case_ids})
        self.embeddings = Embeddings("e" * 16, chunks, "model", "digest", trained=True)
        table = pd.DataFrame({"case_id": np.repeat(names, SLICES), "z": np.tile(np.arange(SLICES), CASES)})
        table["patient"] = table["case_id"].str[:-1]
        kept = np.random.default_rng(0).random(len(table)) < 0.9
        self.table, self.vectors = table[kept].reset_index(drop=True), self.vectors[kept]
        support = self.workspace.stage("index", "s" * 16)
        support.write_chunk("support", {"embeddings": self.vectors}, {"slices": self.table})

    def build(self, executor: str = "inline", **index: object) -> tuple[StoredIndex | None, list[Event]]:
        settings = settings_for(Path(self.workspace.url), **index)
        seen: list[Event] = []
        with open_executor(settings.execution.model_copy(update={"executor": executor})) as opened:
            run = Run(settings, self.workspace, opened, EventStream([seen.append]))
            with run.stage("index") as stage:
                stored = store_index(run, stage, "s" * 16, self.table, self.embeddings, 8)
        return stored, seen


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, StoredIndex]:
    place = Stored(tmp_path_factory.mktemp("workspace"))
    stored, _ = place.build()
    assert stored is not None
    return place, stored


def test_the_stored_index_holds_the_support_set(built: tuple[Stored, StoredIndex]) -> None:
    place, stored = built
    assert (stored.kind, stored.shards, stored.k) == ("ivf-sq8", -(-len(place.table) // 250), 8)
    assert stored.recall >= stored.target
    assert not stored.warning
    index = open_stored(place.workspace.url, stored)
    assert index is not None
    asked = queries(60)
    nlist = index.generation.trained.nlist
    truth = FlatIndex(unit_vectors(place.vectors)[0]).search(asked, 8)
    found = index.probe(asked, 8, None, nlist, factor=50)
    assert np.array_equal(found[0], truth[0])
    assert np.array_equal(found[1], truth[1])


def test_a_second_run_finds_it(built: tuple[Stored, StoredIndex]) -> None:
    place, stored = built
    again, seen = place.build()
    assert again == stored
    assert not [event for event in seen if isinstance(event, ChunkFinished)]


def test_dask_workers_build_the_same_generation(built: tuple[Stored, StoredIndex], tmp_path: Path) -> None:
    stored, _ = Stored(tmp_path).build("local")
    assert stored is not None
    assert stored.generation == built[1].generation


def test_an_interrupted_build_goes_on(
    built: tuple[Stored, StoredIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Stored(tmp_path)
    real = stage_index.fill_shard

    def failing(job: stage_index.ShardJob, unit: stage_index.ShardUnit) -> object:
        if unit.first >= 500:
            raise OSError("the node went away")
        return real(job, unit)

    monkeypatch.setattr(stage_index, "fill_shard", failing)
    with pytest.raises(ExecutionError, match="went away"):
        place.build()
    monkeypatch.setattr(stage_index, "fill_shard", real)
    stored, seen = place.build()
    assert stored == built[1]
    assert len([event for event in seen if isinstance(event, ChunkFinished)]) == stored.shards - 2


def test_small_support_sets_stay_exact(built: tuple[Stored, StoredIndex]) -> None:
    assert built[0].build(kind="auto")[0] is None
    assert open_stored(built[0].workspace.url, None) is None


def test_a_missed_target_is_a_warning(built: tuple[Stored, StoredIndex]) -> None:
    stored, _ = built[0].build(nprobe=1, target_recall=1.0)
    assert stored is not None
    assert stored.recall < 1
    assert "leave index.nprobe out" in stored.warning

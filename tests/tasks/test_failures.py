"""Chunks that fail: the culprits are set aside, the rest is as if they had never been there, and a resume knows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohorts import settings_for, write_cohort

import tasks.embed
from rfss_core.errors import ExecutionError, ShortOfMemoryError, TooManyQuarantinedError
from rfss_core.events import CaseQuarantined, ChunkFinished, ChunkRetried, Event, EventStream
from rfss_core.store import Manifest, Workspace
from tasks.embed import Embeddings, embed, embed_slices
from tasks.execution import open_executor
from tasks.ingest import ingest
from tasks.run import Run
from tasks.served import set_aside


class Stage:
    """Ingest and embed of six volumes with an embedder that may be told to fail."""

    def __init__(self, folder: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cohort = cohort
        self.workspace = Workspace.open(str(folder))
        self.seen: list[Event] = []
        self._patch = monkeypatch
        self._real = tasks.embed.embedder_for

    def run(self, fails: Callable[[np.ndarray], BaseException | None], **execution: Any) -> tuple[Manifest, Embeddings]:
        real = self._real

        class Failing:
            def __init__(self, *given: Any) -> None:
                self.real = real(*given)
                self.digest, self.name, self.trained = self.real.digest, self.real.name, self.real.trained

            def embed(self, slices: list[np.ndarray], batch_size: int | None = None) -> np.ndarray:
                for image in slices:
                    if (error := fails(image)) is not None:
                        raise error
                return self.real.embed(slices, batch_size)

        self._patch.setattr(tasks.embed, "embedder_for", Failing)
        self.seen.clear()
        settings = settings_for(self.cohort, Path(self.workspace.url), execution={"backoff_s": 0.0, **execution})
        with open_executor(settings.execution) as executor:
            run = Run(settings, self.workspace, executor, EventStream([self.seen.append]))
            manifest = ingest.fn(run)
            embeddings = embed.fn(run, manifest)
            return set_aside(run, manifest, embeddings.refused, embeddings.refused_ids), embeddings

    def vectors(self, embeddings: Embeddings) -> dict[str, np.ndarray]:
        store, refused = self.workspace.stage("embed", embeddings.key), embeddings.refused_ids
        return {
            case: store.read_array(chunk, case)
            for case, chunk in embeddings.chunk_of_case.items()
            if case not in refused
        }

    def finished(self) -> int:
        return sum(isinstance(event, ChunkFinished) and event.stage == "embed" for event in self.seen)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    cohort = write_cohort(tmp_path / "cohort", patients=6, labelled=3)
    return Stage(tmp_path / "w", cohort, monkeypatch)


def nothing(image: np.ndarray) -> None:
    return None


def test_a_case_that_cannot_be_embedded_is_set_aside_and_the_others_are_done(stage: Stage) -> None:
    manifest, undisturbed = stage.run(nothing)
    vectors = stage.vectors(undisturbed)
    stage.workspace.files.remove_tree("records/embed")
    [culprit] = manifest.cases.loc[manifest.cases["name"] == "sub-04", "case_id"]
    guilty = stage.workspace.case(culprit).read_slices(2, 3)[0]

    def fails(image: np.ndarray) -> BaseException | None:
        return RuntimeError("cannot do this one") if np.array_equal(image, guilty) else None

    left, embeddings = stage.run(fails)
    [refused] = embeddings.refused
    assert embeddings.refused_ids == {culprit}
    assert (refused.name, refused.reason) == ("sub-04", "unexpected_error")
    assert refused.message == "RuntimeError: cannot do this one [slice 2 of 3, counted from 0]"
    assert culprit not in set(left.cases["case_id"])
    assert set(left.slices["case_id"]) == set(left.cases["case_id"])
    assert left.quarantine["name"].tolist() == ["sub-04"]
    assert [event.name for event in stage.seen if isinstance(event, CaseQuarantined)] == ["sub-04"]
    assert [event.reason for event in stage.seen if isinstance(event, ChunkRetried)] == ["isolated"]
    found = stage.vectors(embeddings)
    assert set(found) == set(vectors) - {culprit}
    assert all(np.array_equal(found[name], vectors[name]) for name in found)
    # A resume believes the record, unless it is asked to try again.
    again, known = stage.run(nothing)
    assert (stage.finished(), known) == (0, embeddings)
    assert again.digest == left.digest
    mended, embeddings = stage.run(nothing, retry_quarantined=True)
    assert stage.finished() == 1
    assert (embeddings.refused, mended.digest) == ((), manifest.digest)


def test_a_moment_without_storage_is_nobodys_fault(stage: Stage) -> None:
    left = [OSError("stale handle")] * 3

    manifest, embeddings = stage.run(lambda image: left.pop() if left else None)
    assert not embeddings.refused
    assert len(manifest.cases) == 6
    assert sum(isinstance(event, ChunkRetried) for event in stage.seen) == 3


def test_storage_that_stays_away_ends_the_run_and_blames_no_case(stage: Stage) -> None:
    with pytest.raises(ExecutionError, match="stale handle"):
        stage.run(lambda image: OSError("stale handle"), attempts=2)
    assert not any(isinstance(event, CaseQuarantined) for event in stage.seen)


def test_above_the_allowed_fraction_the_run_fails(stage: Stage) -> None:
    with pytest.raises(TooManyQuarantinedError, match="stage embed failed on 6 of 6 cases"):
        stage.run(lambda image: ValueError("a bug, not a case"))


class Small:
    """An embedder with room for so many slices."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def embed(self, slices: list[np.ndarray], batch_size: int | None = None) -> np.ndarray:
        self.batches.append(len(slices))
        if len(slices) > self.room:
            raise MemoryError
        return np.array([image.ravel()[:2] for image in slices], dtype=np.float32)


def test_out_of_memory_halves_the_batch_and_nothing_is_lost() -> None:
    slices = np.random.default_rng(0).random((11, 4, 4)).astype(np.float32)
    small = Small(2)
    found = embed_slices(small, slices, 8)  # type: ignore[arg-type]
    assert np.array_equal(found, slices.reshape(11, -1)[:, :2])
    assert small.batches[:3] == [8, 4, 2]
    with pytest.raises(ShortOfMemoryError, match="one slice alone"):
        embed_slices(Small(0), slices, 8)  # type: ignore[arg-type]

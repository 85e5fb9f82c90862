"""Stages: events in order, failures after the rest has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cohorts import settings_for

from rfss_core.errors import ExecutionError, PixelError
from rfss_core.events import ChunkFailed, ChunkFinished, Event, EventStream, StageFinished, StageStarted
from rfss_core.settings import ExecutionSettings
from rfss_core.store import Workspace
from tasks.chunks import finish_chunk, pending
from tasks.execution import open_executor
from tasks.publish import default_name
from tasks.run import ChunkReport, Run


@dataclass(frozen=True)
class Unit:
    id: str


def work(unit: Unit) -> ChunkReport:
    if unit.id == "b":
        raise PixelError("slice 3 of 'b' is NaN; mend it")
    return ChunkReport(unit.id, 5)


def test_failed_units_are_told_at_the_end_and_the_others_are_kept(tmp_path: Path) -> None:
    seen: list[Event] = []
    with open_executor(ExecutionSettings()) as executor:
        settings = settings_for(tmp_path, tmp_path / "w")
        run = Run(settings, Workspace.open(tmp_path / "w"), executor, EventStream([seen.append]))
        with (
            pytest.raises(ExecutionError, match=r"1 of 3 chunks failed in stage embed, b: slice 3 of 'b' is NaN"),
            run.stage("embed") as stage,
        ):
            stage.run_chunks(work, [Unit("a"), Unit("b"), Unit("c")], done=2)
    assert seen[0] == StageStarted("embed", total=5, done=2, unit="chunks")
    assert [event.chunk for event in seen if isinstance(event, ChunkFinished)] == ["a", "c"]
    [failed] = [event for event in seen if isinstance(event, ChunkFailed)]
    assert (failed.chunk, failed.reason) == ("b", "bad_pixels")
    assert not any(isinstance(event, StageFinished) for event in seen)
    assert run.seconds["embed"] >= 0


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ("data/hippocampus/images", "hippocampus"),
        ("scans", "scans"),
        ("/data/Task04/imagesTr/*.nii.gz", "Task04"),
        ("../images", "dataset"),
        ("Zoë's scans/", "Zo-s-scans"),
    ],
)
def test_a_data_set_is_named_after_the_folder_that_says_most(images: str, name: str) -> None:
    assert default_name(images) == name


def test_a_chunk_without_outputs_leaves_its_record_alone(tmp_path: Path) -> None:
    store = Workspace.open(tmp_path / "w").stage("nothing", "0" * 16)
    assert finish_chunk(store, "a", 0, {}).chunk == "a"
    assert store.trusted("a", "a") is not None
    assert pending(store, [Unit("a"), Unit("b")]) == [Unit("b")]
    assert not (tmp_path / "w" / "stages").exists()

"""Stage outputs: written, hashed, recorded last; verified and redone by chunk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rfss_core.digest import digest_array, digest_bytes
from rfss_core.errors import CorruptStoreError, StoreError, UnsafePathError
from rfss_core.store import StageStore, Workspace

TABLE = pd.DataFrame({"slice_id": ["a:00000", "a:00001"], "support": [[1, 2], []], "distance": [0.5, float("nan")]})


def write(stage: StageStore, chunk: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    outputs = stage.write_chunk(
        chunk,
        {
            "embeddings": draw.normal(size=(5, 7)).astype(np.float16),
            "case-1/labels": draw.integers(0, 3, (2, 4, 4)).astype(np.uint8),
            "case-2/labels": np.zeros((3, 6, 5), np.uint8),
        },
        {"provenance": TABLE},
        inner_chunks={"embeddings": (2, 7)},
    )
    stage.complete(chunk, f"input {seed}", outputs, seconds={"read": 0.1, "compute": 0.2, "write": 0.3})


def test_outputs_round_trip_and_are_hashed(root_url: str) -> None:
    workspace = Workspace.open(root_url)
    stage = workspace.stage("segment", "k1")
    write(stage, "c1", 1)
    draw = np.random.default_rng(1)
    embeddings = draw.normal(size=(5, 7)).astype(np.float16)
    labels = draw.integers(0, 3, (2, 4, 4)).astype(np.uint8)
    np.testing.assert_array_equal(stage.read_array("c1", "embeddings"), embeddings)
    np.testing.assert_array_equal(stage.read_array("c1", "embeddings", slice(1, 3)), embeddings[1:3])
    np.testing.assert_array_equal(stage.read_array("c1", "case-1/labels"), labels)
    assert not stage.read_array("c1", "case-2/labels").any()
    pd.testing.assert_frame_equal(stage.read_table("c1", "provenance"), TABLE)
    record = stage.trusted("c1", "input 1")
    assert record is not None
    folder = "stages/segment/k1/c1"
    assert record.outputs == {
        f"{folder}/embeddings": digest_array(embeddings),
        f"{folder}/case-1/labels": digest_array(labels),
        f"{folder}/case-2/labels": digest_array(np.zeros((3, 6, 5), np.uint8)),
        f"{folder}/provenance.parquet": digest_bytes(workspace.files.read_bytes(f"{folder}/provenance.parquet")),
    }
    assert record.seconds == {"read": 0.1, "compute": 0.2, "write": 0.3}
    assert stage.verify("c1") == []
    assert stage.records() == {"c1": record}
    assert stage.trusted("c1", "input 2") is None
    assert workspace.stage("segment", "k2").trusted("c1", "input 1") is None


def test_the_same_outputs_have_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        write(Workspace.open(tmp_path / name).stage("segment", "k"), "c1", 1)
        root = tmp_path / name / "stages"
        contents.append({p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()})
    assert contents[0] == contents[1]


def test_a_new_attempt_removes_what_the_last_one_left(root_url: str) -> None:
    workspace = Workspace.open(root_url)
    stage = workspace.stage("segment", "k")
    write(stage, "c1", 1)
    workspace.files.write_bytes("stages/segment/k/c1/leftover/c/0", b"torn")
    outputs = stage.write_chunk("c1", {"other": np.ones(3)})
    # Begun again, not completed: the old record must not vouch for the new data.
    assert stage.trusted("c1", "input 1") is None
    assert stage.records() == {}
    assert workspace.files.names("stages/segment/k/c1") == ["other"]
    stage.complete("c1", "input 2", outputs)
    assert stage.verify("c1") == []
    stage.remove("c1")
    assert not workspace.files.exists("stages/segment/k/c1")
    with pytest.raises(StoreError, match="no completion record"):
        stage.verify("c1")


def test_a_flipped_byte_or_a_lost_file_is_found_by_verify(tmp_path: Path) -> None:
    stage = Workspace.open(tmp_path).stage("segment", "k")
    write(stage, "c1", 1)
    write(stage, "c2", 2)
    folder = tmp_path / "stages/segment/k/c1"
    data = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(data) == 7
    for path, sound in data.items():
        output = next(
            name for name in ("embeddings", "case-1/labels", "case-2/labels", "provenance") if name in str(path)
        )
        for damage in ("flip", "truncate", "remove"):
            if damage == "flip":
                torn = bytearray(sound)
                torn[len(torn) // 2] ^= 0xFF
                path.write_bytes(torn)
            elif damage == "truncate":
                path.write_bytes(sound[: len(sound) // 2])
            else:
                path.unlink()
            found = stage.verify("c1")
            assert len(found) == 1, (path, damage)
            assert output in found[0]
            path.write_bytes(sound)
    assert stage.verify("c1") == stage.verify("c2") == []


def test_damage_is_an_error_on_reading_too(tmp_path: Path) -> None:
    stage = Workspace.open(tmp_path).stage("segment", "k")
    write(stage, "c1", 1)
    shard = tmp_path / "stages/segment/k/c1/case-1/labels/c.0.0.0"
    torn = bytearray(shard.read_bytes())
    torn[5] ^= 0xFF
    shard.write_bytes(torn)
    with pytest.raises(CorruptStoreError, match="case-1/labels"):
        stage.read_array("c1", "case-1/labels")
    table = tmp_path / "stages/segment/k/c1/provenance.parquet"
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(CorruptStoreError, match="provenance"):
        stage.read_table("c1", "provenance")
    with pytest.raises(StoreError, match="nothing"):
        stage.read_table("c1", "nothing")


def test_quarantined_chunks_are_records_too(root_url: str) -> None:
    stage = Workspace.open(root_url).stage("segment", "k")
    stage.complete(
        "c1", "in", {}, status="quarantined", reason="out_of_memory", message="too large", detail={"case": "x"}
    )
    record = stage.trusted("c1", "in")
    assert record is not None
    assert (record.status, record.reason, record.message, record.detail) == (
        "quarantined",
        "out_of_memory",
        "too large",
        {"case": "x"},
    )
    assert stage.verify("c1") == []


def test_stage_stores_pickle_as_their_address(root_url: str) -> None:
    stage = Workspace.open(root_url).stage("segment", "k")
    write(stage, "c1", 1)
    again = pickle.loads(pickle.dumps(stage))
    assert again.verify("c1") == []


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/../b", "", "x.parquet", "x.json", "a b"])
def test_unsafe_output_names_are_refused(root_url: str, name: str) -> None:
    stage = Workspace.open(root_url).stage("segment", "k")
    with pytest.raises(UnsafePathError):
        stage.write_chunk("c1", {name: np.zeros(1)})
    with pytest.raises(UnsafePathError):
        stage.write_chunk("c1", {}, {name: TABLE})
    with pytest.raises(UnsafePathError):
        stage.read_array("c1", name)
    with pytest.raises(UnsafePathError):
        stage.write_chunk("../c1", {})

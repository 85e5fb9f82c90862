"""Generations: immutable, atomic, shared files, and every damaged one found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from indexes import DIM, clustered, queries, settings_of, stored_index

from rfss_core.errors import CorruptIndexError, IndexNotFoundError, SupportError
from rfss_core.retrieval.building import build, extend
from rfss_core.retrieval.generations import CURRENT, Generations
from rfss_core.retrieval.inverted_lists import build_shard
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import ArraySource
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.store import Files

SETTINGS = settings_of(shard_rows=700)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    stored_index(folder, clustered(2000), shard_rows=700)
    return folder


@pytest.fixture
def generations(pristine: Path, tmp_path: Path) -> Generations:
    shutil.copytree(pristine, tmp_path / "store")
    return Generations(Files(tmp_path / "store"), "index")


def file_of(generations: Generations, name: str) -> Path:
    found = generations.files.local_path(f"index/files/{name}")
    assert found is not None
    return found


def stored_names(generations: Generations) -> list[str]:
    generation = generations.read()
    first = generation.shards[0]
    assert generation.joined is not None
    joined = [generation.joined.lists.name, generation.joined.sizes.name]
    return [generation.trained.file.name, generation.held.name, first.lists.name, first.vectors.name, *joined]


@pytest.mark.parametrize("which", range(6), ids=["trained", "held", "lists", "vectors", "joined", "sizes"])
def test_damage_is_found_at_opening(generations: Generations, which: int) -> None:
    path = file_of(generations, stored_names(generations)[which])
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(CorruptIndexError, match="truncated"):
        ShardedIndex(generations)
    spoilt = bytearray(whole)
    spoilt[-3] ^= 1
    path.write_bytes(bytes(spoilt))
    with pytest.raises(CorruptIndexError, match="sha256"):
        ShardedIndex(generations)
    path.unlink()
    with pytest.raises(IndexNotFoundError, match="missing"):
        ShardedIndex(generations)
    path.write_bytes(whole)
    assert ShardedIndex(generations).size == 2000


@pytest.mark.parametrize("check", ["full", "quick"])
def test_swapped_shards_are_found(tmp_path: Path, check: str) -> None:
    # Joined lists do not read the shards' own again, and a swap would change nothing.
    _, generations = stored_index(tmp_path, clustered(2000), shard_rows=700, merge=False)
    first, second = generations.read().shards[:2]
    one, two = file_of(generations, first.lists.name), file_of(generations, second.lists.name)
    assert first.lists.size == second.lists.size
    one.rename(one.with_suffix(".aside"))
    two.rename(one)
    one.with_suffix(".aside").rename(two)
    with pytest.raises(CorruptIndexError, match="sha256" if check == "full" else "swapped"):
        ShardedIndex(generations, settings=SETTINGS.model_copy(update={"check": check}))


def test_a_shard_of_another_generation_is_found(generations: Generations, tmp_path: Path) -> None:
    other, _ = stored_index(tmp_path / "other", clustered(2000, seed=5), shard_rows=700)
    theirs, ours = other.generation.shards[0], generations.read().shards[0]
    source = tmp_path / "other" / "index" / "files" / theirs.lists.name
    shutil.copyfile(source, file_of(generations, ours.lists.name))
    with pytest.raises(CorruptIndexError):
        ShardedIndex(generations)


def test_joined_lists_of_another_generation_are_found(generations: Generations, tmp_path: Path) -> None:
    other, theirs = stored_index(tmp_path / "other", clustered(2300, seed=5), shard_rows=700)
    ours = generations.read()
    for shard in other.generation.shards:
        shutil.copyfile(file_of(theirs, shard.lists.name), file_of(generations, shard.lists.name))
    for stored in (other.generation.joined.lists, other.generation.joined.sizes):
        shutil.copyfile(file_of(theirs, stored.name), file_of(generations, stored.name))
    mixed = ours.model_copy(update={"joined": other.generation.joined})
    with pytest.raises(CorruptIndexError, match="another generation"):
        ShardedIndex(generations, mixed)


def test_an_edited_or_swapped_manifest_is_found(generations: Generations) -> None:
    name = generations.read().id
    path = generations.files.local_path(f"index/generations/{name}.json")
    assert path is not None
    content = json.loads(path.read_text())
    content["tuning"]["levels"][0]["nprobe"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptIndexError, match="swapped or edited"):
        generations.read()
    path.write_text("{")
    with pytest.raises(CorruptIndexError, match="damaged"):
        generations.read()
    with pytest.raises(IndexNotFoundError):
        generations.read("0" * 16)
    with pytest.raises(IndexNotFoundError, match="no published index"):
        Generations(generations.files, "nowhere").read()


def test_half_a_generation_is_never_seen(generations: Generations, monkeypatch: pytest.MonkeyPatch) -> None:
    old = generations.read()
    before = ShardedIndex(generations).search(queries(5), 8)[0]

    class Killed(BaseException):
        pass

    real = Files.write_bytes
    # Killed before each write: of the manifest, of the pointer.
    for survived in (0, 1):
        writes = 0

        def write(self: Files, path: str, data: bytes, allowed: int = survived) -> None:
            nonlocal writes
            if writes == allowed:
                raise Killed
            writes += 1
            real(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Files, "write_bytes", write)
            with pytest.raises(Killed):
                extend(ArraySource(clustered(300, seed=9)), SETTINGS, generations)
        assert generations.read() == old
        assert np.array_equal(ShardedIndex(generations).search(queries(5), 8)[0], before)
    new, _ = extend(ArraySource(clustered(300, seed=9)), SETTINGS, generations)
    assert generations.read() == new != old


def test_a_missing_file_is_never_published(generations: Generations) -> None:
    old = generations.read()
    file_of(generations, old.shards[1].vectors.name).unlink()
    with pytest.raises(IndexNotFoundError):
        generations.publish(old.model_copy(update={"parent": "0" * 16}))
    assert generations.files.read_bytes(f"index/{CURRENT}").decode() == old.id


def test_new_rows_are_a_new_shard_beside_the_old_ones(generations: Generations) -> None:
    old = generations.read()
    stamps = {path.name: path.stat().st_mtime_ns for path in file_of(generations, "x").parent.iterdir()}
    more = clustered(300, seed=9)
    new, drift = extend(ArraySource(more), SETTINGS, generations, np.arange(300) // 8)
    assert new.trained == old.trained
    assert new.shards[:-1] == old.shards
    assert (new.shards[-1].first, new.rows, new.parent) == (2000, 2300, old.id)
    assert not drift.retrain
    index = ShardedIndex(generations)
    rows, distances = index.search(unit_vectors(more)[0], 1)
    assert (rows[:, 0] >= 2000).mean() > 0.95
    assert distances.max() < 1e-3
    # Open readers of the old generation keep what they have.
    assert ShardedIndex(generations, old).size == 2000
    assert all(file_of(generations, name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_extended_equals_built_at_once(tmp_path: Path) -> None:
    both = clustered(2000), clustered(900, seed=4)
    grown, generations = stored_index(tmp_path, both[0], shard_rows=700)
    extend(ArraySource(both[1]), SETTINGS, generations)
    grown = ShardedIndex(generations)
    nlist = grown.generation.trained.nlist
    at_once, _ = stored_index(tmp_path / "at once", np.concatenate(both), shard_rows=5000)
    found = grown.probe(queries(30), 8, None, nlist)
    expected = at_once.probe(queries(30), 8, None, at_once.generation.trained.nlist)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def test_drift_is_told(generations: Generations) -> None:
    stranger = np.random.default_rng(1).normal(size=(200, DIM)).astype(np.float32)
    _, drift = extend(ArraySource(stranger), SETTINGS, generations)
    assert drift.share > 0.5
    assert drift.retrain
    index = ShardedIndex(generations)
    rebuilt = build(index.vectors, SETTINGS, generations, 8)
    assert rebuilt.rows == index.size
    assert rebuilt.trained != index.generation.trained


def test_vectors_of_another_dimension_are_refused(generations: Generations) -> None:
    trained = generations.read().trained
    with pytest.raises(SupportError, match="do not fit"):
        build_shard(np.ones((3, DIM + 1), dtype=np.float32), 0, trained, generations, SETTINGS)
    with pytest.raises(SupportError, match="no new vectors"):
        extend(ArraySource(np.empty((0, DIM), dtype=np.float32)), SETTINGS, generations)
    with pytest.raises(SupportError, match="groups have shape"):
        extend(ArraySource(clustered(9)), SETTINGS, generations, np.arange(8))


def test_sweeping_keeps_what_is_listed(generations: Generations) -> None:
    first = generations.read()
    second, _ = extend(ArraySource(clustered(300, seed=9)), SETTINGS, generations)
    orphan = file_of(generations, "0" * 32 + ".npy")
    orphan.write_bytes(b"left by a killed writer")
    assert generations.sweep(keep=2) == []
    assert not orphan.exists()
    assert generations.sweep(keep=1) == [first.id]
    assert generations.names() == [second.id]
    assert ShardedIndex(generations).size == 2300


def test_an_object_store_is_fetched_once_and_checked(tmp_path: Path) -> None:
    files = Files("memory://index-generations")
    generations = Generations(files, "some/index", cache=str(tmp_path / "cache"))
    vectors = clustered(1200)
    build(ArraySource(vectors), SETTINGS, generations, 8)
    generations = Generations(files, "some/index", cache=str(tmp_path / "readers"))
    remote = ShardedIndex(generations)
    local, _ = stored_index(tmp_path / "local", vectors, shard_rows=700)
    nlist = local.generation.trained.nlist
    assert np.array_equal(remote.probe(queries(20), 8, None, nlist)[0], local.probe(queries(20), 8, None, nlist)[0])
    assert remote.generation.joined is not None
    assert not (tmp_path / "readers" / remote.generation.shards[0].lists.name).exists()
    kept = tmp_path / "readers" / remote.generation.joined.lists.name
    stamp = kept.stat().st_mtime_ns
    ShardedIndex(generations)
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptIndexError, match="sha256"):
        ShardedIndex(generations)

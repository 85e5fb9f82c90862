"""Files: atomic, durable, and never outside the root."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from rfss_core.errors import InputError, StoreError, UnsafePathError
from rfss_core.store.files import Files, safe_name


def test_bytes_round_trip_replace_list_and_remove(root_url: str) -> None:
    files = Files(root_url)
    assert files.names("a") == []
    files.write_bytes("a/b/one.json", b"1")
    files.write_bytes("a/b/one.json", b"22")
    files.write_bytes("a/b/two.json", b"3")
    assert files.read_bytes("a/b/one.json") == b"22"
    assert files.names("a/b") == ["one.json", "two.json"]
    assert files.names("a") == ["b"]
    assert files.read_many(["a/b/one.json", "a/b/none.json", "a/b/two.json"]) == {
        "a/b/one.json": b"22",
        "a/b/two.json": b"3",
    }
    files.remove("a/b/two.json")
    files.remove("a/b/two.json")
    assert not files.exists("a/b/two.json")
    files.remove_tree("a")
    files.remove_tree("a")
    assert not files.exists("a/b/one.json")
    with pytest.raises(StoreError, match="one"):
        files.read_bytes("a/b/one.json")


def test_pickles_as_its_url(root_url: str) -> None:
    files = Files(root_url)
    files.write_bytes("x", b"1")
    assert pickle.loads(pickle.dumps(files)).read_bytes("x") == b"1"


def test_local_path_is_none_on_object_stores(tmp_path: Path) -> None:
    assert Files(tmp_path).local_path("a/b") == tmp_path / "a" / "b"
    assert Files(f"file://{tmp_path}").local_path("a/b") == tmp_path / "a" / "b"
    assert Files("memory://x").local_path("a/b") is None


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b"])
def test_paths_that_may_leave_the_root_are_refused(root_url: str, path: str) -> None:
    files = Files(root_url)
    for attempt in (files.read_bytes, files.remove, files.remove_tree, files.exists, files.names, files.local_path):
        with pytest.raises(UnsafePathError):
            attempt(path)
    with pytest.raises(UnsafePathError):
        files.write_bytes(path, b"x")
    with pytest.raises(UnsafePathError):
        files.zarr_store(path, read_only=False)


def test_the_root_itself_is_never_removed(root_url: str) -> None:
    files = Files(root_url)
    files.write_bytes("x", b"1")
    for path in ("", ".", "./"):
        with pytest.raises(UnsafePathError):
            files.remove_tree(path)
    assert files.exists("x")


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    files = Files(root)
    with pytest.raises(UnsafePathError, match="link"):
        files.read_bytes("link/secret")
    with pytest.raises(UnsafePathError):
        files.write_bytes("link/new", b"x")
    with pytest.raises(UnsafePathError):
        files.remove_tree("link")
    with pytest.raises(UnsafePathError):
        files.write_bytes("file", b"x")
    assert (outside / "secret").read_bytes() == b"secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_root_that_is_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    files = Files(tmp_path / "root")
    files.write_bytes("a/x", b"1")
    assert files.read_bytes("a/x") == b"1"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-rf", "a/b", "a b", "é", "a\n", "x" * 151, "a:b"])
def test_names_that_cannot_be_a_folder_are_refused(name: str) -> None:
    with pytest.raises(UnsafePathError):
        safe_name(name, "case id")


def test_a_failed_write_leaves_the_old_bytes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path)
    files.write_bytes("x", b"old")

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="writing 'x'"):
        files.write_bytes("x", b"new")
    monkeypatch.undo()
    assert files.read_bytes("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_write_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(handle: int) -> None:
        calls.append("sync folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "sync file")
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    Files(tmp_path).write_bytes("x", b"1")
    assert calls == ["sync file", "rename", "sync folder"]


def test_stale_partials_are_swept_and_nothing_else(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write_bytes("a/x.json", b"1")
    stale = tmp_path / "a" / f"x.json.{'0' * 32}.partial"
    young = tmp_path / "a" / f"y.json.{'1' * 32}.partial"
    other = tmp_path / "a" / "mine.partial"
    for path in (stale, young, other):
        path.write_bytes(b"torn")
    for path in (stale, other):
        os.utime(path, (0, 0))
    assert files.names("a") == ["mine.partial", "x.json"]
    assert files.sweep_partials() == [f"a/{stale.name}"]
    assert young.exists()
    assert other.exists()
    assert files.sweep_partials(older_than_s=-60) == [f"a/{young.name}"]


def test_unknown_scheme_and_unwritable_root_are_clear(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nosuch://"):
        Files("nosuch://bucket/x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="writing"):
        Files(tmp_path / "file").write_bytes("x", b"1")


def test_errors_of_an_object_stores_client_are_store_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*arguments: object, **options: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    files = Files("memory://refused")
    monkeypatch.setattr(type(files._fs.inner.sync_fs), "pipe_file", refuse)
    files = Files("memory://refused")
    with pytest.raises(StoreError, match="Unable to locate credentials; check the URL, credentials"):
        files.write_bytes("x", b"1")

"""Crashes: whatever is killed whenever, nothing torn is trusted, and a second start ends as an undisturbed run."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rfss_core.errors import StorageFullError
from rfss_core.store import StageStore, Workspace

CHUNKS = 24

WRITER = """
import sys
import numpy as np, pandas as pd
from rfss_core.store import Workspace
stage = Workspace.open(sys.argv[1]).stage("segment", "k")
print("ready", flush=True)
for number in range(*map(int, sys.argv[2:])):
    chunk = f"c{number:03d}"
    if stage.trusted(chunk, "in") is not None:
        continue
    draw = np.random.default_rng(number)
    arrays = {"logits": draw.normal(size=(6, 40, 40)).astype("f4"), "a/labels": np.zeros((6, 40, 40), "u1")}
    outputs = stage.write_chunk(chunk, arrays, {"provenance": pd.DataFrame({"x": draw.normal(size=50)})})
    stage.complete(chunk, "in", outputs)
"""


def start_writer(root: Path, *numbers: int) -> subprocess.Popen[str]:
    arguments = [str(root), *map(str, numbers or (CHUNKS,))]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


def check_trusted_is_sound(stage: StageStore) -> dict[str, dict[str, str]]:
    outputs = {}
    for chunk in stage.records():
        record = stage.trusted(chunk, "in")
        assert record is not None
        assert stage.verify(chunk) == []
        outputs[chunk] = record.outputs
    return outputs


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.invariant])])
def test_a_writer_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path, kills: int) -> None:
    draw = random.Random(7)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    # Two processes at once, each with chunks of its own.
    with start_writer(undisturbed, 0, CHUNKS, 2) as even, start_writer(undisturbed, 1, CHUNKS, 2) as odd:
        for writer in (even, odd):
            writer.communicate(timeout=120)
            assert writer.returncode == 0
    expected = check_trusted_is_sound(Workspace.open(undisturbed).stage("segment", "k"))
    assert len(expected) == CHUNKS

    done_after_kills = []
    for _ in range(kills):
        with start_writer(disturbed) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0.02, 1.0 / kills))
            writer.send_signal(signal.SIGKILL)
        done_after_kills.append(len(check_trusted_is_sound(Workspace.open(disturbed).stage("segment", "k"))))
    assert done_after_kills == sorted(done_after_kills)
    with start_writer(disturbed) as writer:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    workspace = Workspace.open(disturbed)
    assert check_trusted_is_sound(workspace.stage("segment", "k")) == expected
    workspace.files.sweep_partials(older_than_s=-1)
    left, right = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (undisturbed, disturbed)
    )
    assert left == right


class Killed(BaseException):
    """Stands for kill -9: no handler may catch it."""


def crash_at_every_sync(
    before: Callable[[], None], after: Callable[[], None], check: Callable[[], None], patch: pytest.MonkeyPatch
) -> int:
    """Run ``before``, then ``after`` with a crash at the nth fsync, then ``check``, for every n; count the crashes."""
    fsync = os.fsync
    for crashes in itertools.count():
        before()
        calls = itertools.count()

        def counted(handle: int, calls: Iterator[int] = calls, last: int = crashes) -> None:
            if next(calls) >= last:
                raise Killed
            fsync(handle)

        patch.setattr(os, "fsync", counted)
        try:
            after()
        except Killed:
            finished = False
        else:
            finished = True
        patch.setattr(os, "fsync", fsync)
        check()
        if finished:
            return crashes
    raise AssertionError


def test_a_chunk_torn_at_any_sync_has_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Workspace.open(tmp_path).stage("segment", "k")

    def write(value: int) -> None:
        outputs = stage.write_chunk("c", {"x": np.full((2, 3), value)}, {"t": pd.DataFrame({"v": [value]})})
        stage.complete("c", f"in {value}", outputs)

    def check() -> None:
        for record in stage.records().values():
            assert stage.verify("c") == []
            value = int(record.input_digest.split()[1])
            assert (stage.read_array("c", "x") == value).all()
            assert stage.read_table("c", "t")["v"].tolist() == [value]

    assert crash_at_every_sync(lambda: write(1), lambda: write(2), check, monkeypatch) > 8
    assert stage.trusted("c", "in 2") is not None


def test_a_case_torn_at_any_sync_has_no_record(tmp_path: Path, make_sample, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open(tmp_path)
    first, second = make_sample(0, shape=(2, 3, 3)), make_sample(0, dtype="float32", shape=(2, 3, 3))

    def check() -> None:
        for record in workspace.ingest_records().values():
            assert workspace.verify_case("case-000") == []
            expected = first if record.detail["case"]["source_digest"] == first.source_digest else second
            stored = workspace.case("case-000").read_raw()
            assert stored.dtype == expected.volume.pixels.dtype
            np.testing.assert_array_equal(stored, expected.volume.pixels)

    crashes = crash_at_every_sync(
        lambda: workspace.write_case(*first.arguments),
        lambda: workspace.write_case(*second.arguments),
        check,
        monkeypatch,
    )
    assert crashes > 15
    assert workspace.ingested(second.case, second.source_digest) is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_clear_and_the_rest_unharmed(small_disk: Path, make_sample) -> None:
    workspace = Workspace.open(small_disk / "w")
    ballast = small_disk / "ballast"
    noise = np.random.default_rng(0).integers(0, 2**16, (8, 64, 64)).astype(np.uint16)
    stage = workspace.stage("segment", "k")

    def write(chunk: str) -> None:
        stage.complete(chunk, "in", stage.write_chunk(chunk, {"x": noise}, {"t": pd.DataFrame({"v": range(100)})}))

    failed = None
    for number in range(100):
        try:
            write(f"c{number}")
        except StorageFullError as error:
            failed = f"c{number}"
            message = str(error)
            break
    assert failed is not None
    assert "free some and start the same command again" in message
    assert failed in message
    assert failed not in stage.records()
    assert len(check_trusted_is_sound(stage)) == int(failed[1:]) > 5

    stage.remove(failed)
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize))
    with pytest.raises(StorageFullError):
        workspace.write_case(*make_sample().arguments)
    assert workspace.ingest_records() == {}
    with pytest.raises(StorageFullError):
        workspace.files.write_bytes("summary.json", b"x" * 10000)
    assert not workspace.files.exists("summary.json")
    with pytest.raises(StorageFullError):
        Workspace.open(small_disk / "other")

    ballast.unlink()
    stage.remove("c0")
    stage.remove("c1")
    write(failed)
    workspace.write_case(*make_sample().arguments)
    assert workspace.verify_case("case-000") == []
    check_trusted_is_sound(stage)
    assert not list(small_disk.rglob("*.partial"))


def test_a_disk_that_fills_at_any_sync_is_clear_and_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Workspace.open(tmp_path).stage("segment", "k")
    fsync = os.fsync
    for full_after in itertools.count():
        calls = itertools.count()

        def full(handle: int, calls: Iterator[int] = calls, last: int = full_after) -> None:
            if next(calls) >= last:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", full)
        try:
            outputs = stage.write_chunk("c", {"x": np.ones((2, 3))}, {"t": pd.DataFrame({"v": [1]})})
            stage.complete("c", "in", outputs)
        except StorageFullError:
            # The last sync is that of the record's own folder: the record is there, and whole.
            assert all(stage.verify(chunk) == [] for chunk in stage.records())
        else:
            break
        finally:
            monkeypatch.setattr(os, "fsync", fsync)
        stage.remove("c")
    assert full_after > 8
    assert stage.verify("c") == []
    assert not list(tmp_path.rglob("*.partial"))

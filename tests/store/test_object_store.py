"""The store on a real S3 server, behind a network that fails."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from s3 import FlakyProxy, check_keys, make_bucket

from rfss_core.errors import InputError, StoreAccessError, StoreError
from rfss_core.segmentation.memory import Memory
from rfss_core.segmentation.memory_store import ZarrMemoryStore
from rfss_core.store import Files, Workspace
from rfss_core.store.lease import life, read_lease, take
from rfss_core.store.remote import Patience, passes


def fill(url: str, make_sample, chunks: int) -> dict[str, dict[str, str]]:
    """Do the work of a small run: cases, chunks, records, manifest; return all outputs with their digests."""
    workspace = Workspace.open(url)
    for number in range(2):
        workspace.write_case(*make_sample(number).arguments)
    stage = workspace.stage("segment", "k")

    def work(number: int) -> None:
        draw = np.random.default_rng(number)
        arrays = {"a/labels": draw.integers(0, 3, (4, 30, 30)).astype(np.uint8)}
        outputs = stage.write_chunk(f"c{number}", arrays, {"slices": pd.DataFrame({"x": draw.normal(size=9)})})
        stage.complete(f"c{number}", "in", outputs)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(chunks)))
    assert {record.chunk for record in stage.trusted_many(dict.fromkeys([*stage.records(), "missing"], "in"))} == {
        f"c{number}" for number in range(chunks)
    }
    assert all(stage.verify(chunk) == [] for chunk in stage.records())
    np.testing.assert_array_equal(workspace.case("case-001").read_raw(), make_sample(1).volume.pixels)
    manifest = workspace.write_manifest()
    assert workspace.manifest().digest == manifest.digest
    records = {**stage.records(), **workspace.ingest_records()}
    return {name: record.outputs for name, record in records.items()}


def test_a_store_that_fails_a_fifth_of_all_calls_holds_the_same(proxy: FlakyProxy, tmp_path, make_sample) -> None:
    expected = fill(str(tmp_path), make_sample, 3)
    url = make_bucket(proxy.port)
    proxy.share = 0.2
    assert fill(f"{url}/w", make_sample, 3) == expected
    assert proxy.failed > 20


def test_a_store_that_is_away_for_seconds_is_waited_for(proxy: FlakyProxy) -> None:
    url = make_bucket(proxy.port)
    files, memories = Files(f"{url}/w"), ZarrMemoryStore(f"{url}/w/memories")
    memory = Memory(torch.ones(4, 64).bfloat16(), torch.ones(8), torch.ones(4, dtype=torch.bool))
    memories.put("0" * 64, memory)
    proxy.away = True
    threading.Timer(2.0, lambda: setattr(proxy, "away", False)).start()
    began = time.monotonic()
    files.write_bytes("summary.json", b"{}")
    assert time.monotonic() - began > 1.5
    assert files.read_bytes("summary.json") == b"{}"
    proxy.away = True
    threading.Timer(1.0, lambda: setattr(proxy, "away", False)).start()
    again = memories.get("0" * 64)
    assert again is not None
    assert torch.equal(again.spatial, memory.spatial)


def test_a_store_that_stays_away_is_an_error(proxy: FlakyProxy) -> None:
    url = make_bucket(proxy.port)
    proxy.away = True
    files = Files(f"{url}/w")
    files._fs.patience = Patience(total_s=0.5)
    for attempt in (lambda: files.exists("x"), lambda: files.names("lease"), lambda: files.write_bytes("x", b"1")):
        with pytest.raises(StoreError, match=f"in workspace '{url}/w' failed"):
            attempt()


def test_refused_keys_and_unknown_buckets_are_one_line_each(proxy: FlakyProxy) -> None:
    with pytest.raises(StoreAccessError, match="there is no such bucket; create it, or correct the URL") as unknown:
        Workspace.open("s3://rfss-no-such-bucket/w")
    assert isinstance(unknown.value, InputError)
    url = make_bucket(proxy.port)
    check_keys(proxy.port, after=0)
    try:
        with pytest.raises(
            StoreAccessError, match=r"refuses access to .* check its URL and the credentials"
        ) as refused:
            Workspace.open(f"{url}/w")
    finally:
        check_keys(proxy.port, after=math.inf)
    assert "\n" not in f"{unknown.value}{refused.value}"
    Workspace.open(f"{url}/w")


def test_resume_reads_known_records_and_lists_none(proxy: FlakyProxy) -> None:
    stage = Workspace.open(f"{make_bucket(proxy.port)}/w").stage("embed", "k")
    for number in range(40):
        stage.complete(f"c{number}", "in", {})
    proxy.requests.clear()
    assert len(list(stage.trusted_many({f"c{number}": "in" for number in range(50)}))) == 40
    assert len(proxy.requests) == 50
    assert all("list-type" not in path for _, path in proxy.requests)


def test_leases_on_s3(proxy: FlakyProxy) -> None:
    url = make_bucket(proxy.port)
    files = Files(f"{url}/w")
    proxy.share = 0.2
    wins = []

    def compete(number: int) -> None:
        if Files(f"{url}/w").create("lease/00000001.json", f"run {number}".encode()):
            wins.append(number)

    for _ in range(4):
        wins.clear()
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(compete, range(6)))
        assert len(wins) == 1
        assert files.read_bytes("lease/00000001.json") == f"run {wins[0]}".encode()
        files.remove("lease/00000001.json")
    with take(files, 30.0, "rfss label") as lease:
        lease._renew()
        assert (life(files) or ())[1] == "alive"
    found = read_lease(files)
    assert found is not None
    assert (found[1].beat, found[1].ended) == (1, "finished")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("peer"), True),
        (TimeoutError(), True),
        (OSError(5, "input/output"), True),
        (OSError(16, "SlowDown"), True),
        (FileNotFoundError(2, "no bucket"), False),
        (PermissionError(13, "AccessDenied"), False),
        (OSError(22, "InvalidBucketName"), False),
        (OSError(28, "no space"), False),
        (ValueError("bug"), False),
    ],
)
def test_what_is_tried_again(error: Exception, again: bool) -> None:
    assert passes(error) is again

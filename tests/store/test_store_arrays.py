"""Arrays: what is read is what was written, or an error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rfss_core.digest import digest_array
from rfss_core.errors import CorruptStoreError, StoreError
from rfss_core.store import arrays
from rfss_core.store.arrays import confirm_array, digest_stored, open_array, read_array, write_array
from rfss_core.store.files import Files

NUMBERS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=NUMBERS.flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))
    ),
    shard_bytes=st.sampled_from([1, 40, 2**20]),
)
def test_any_numbers_round_trip_and_digest(tmp_path: Path, data: np.ndarray, shard_bytes: int) -> None:
    files = Files(tmp_path)
    files.remove_tree("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SHARD_BYTES", shard_bytes)
        digest = write_array(files, "x", data)
        confirm_array(files, "x", digest)
        assert digest == digest_array(data) == digest_stored(files, "x")
    np.testing.assert_array_equal(read_array(files, "x"), data)
    assert read_array(files, "x").dtype == data.dtype.newbyteorder("=")


@pytest.mark.parametrize("shape", [(7, 5, 4), (1, 5, 4), (3, 7, 5, 4)])
def test_shards_hold_whole_inner_chunks_up_to_the_limit(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    colour = len(shape) == 4
    inner = (3, 1, 5, 4) if colour else (1, 5, 4)
    axis = 1 if colour else 0
    monkeypatch.setattr(arrays, "SHARD_BYTES", 3 * math.prod(inner) * 2)
    data = np.arange(math.prod(shape), dtype=np.uint16).reshape(shape)
    write_array(files, "x", data, inner=inner, shard_axis=axis)
    stored = open_array(files, "x")
    assert stored.chunks == inner
    assert stored.shards is not None
    assert stored.shards[axis] == min(3, shape[axis])
    np.testing.assert_array_equal(stored[...], data)


def test_background_is_stored_and_a_lost_shard_is_not_read_as_background(tmp_path: Path) -> None:
    files = Files(tmp_path)
    write_array(files, "mask", np.zeros((4, 8, 8), np.uint8))
    shards = [path for path in (tmp_path / "mask").iterdir() if path.name != "zarr.json"]
    assert len(shards) == 1
    assert not read_array(files, "mask").any()
    shards[0].unlink()
    # What zarr itself says of it:
    assert not np.asarray(zarr.open_array(tmp_path / "mask", mode="r")[...]).any()
    with pytest.raises(CorruptStoreError, match="0 of 1 shards"):
        read_array(files, "mask")


def test_rows_are_read_alone(tmp_path: Path) -> None:
    files = Files(tmp_path)
    data = np.random.default_rng(0).normal(size=(1000, 384)).astype(np.float16)
    write_array(files, "embeddings", data)
    np.testing.assert_array_equal(read_array(files, "embeddings", slice(17, 23)), data[17:23])
    assert open_array(files, "embeddings").chunks == (85, 384)


@pytest.mark.parametrize("data", [np.array("text"), np.array(["a", "b"]), np.array([{}]), np.float32(1.0)])
def test_text_objects_and_scalars_are_refused(tmp_path: Path, data: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        write_array(Files(tmp_path), "x", np.asarray(data))


def test_chunk_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for inner in ((1,), (0, 2), (1, 1, 1)):
        with pytest.raises(ValueError, match="chunk shape"):
            write_array(Files(tmp_path), "x", np.zeros((3, 2)), inner=inner)


def test_missing_array_names_what_to_do(root_url: str) -> None:
    with pytest.raises(StoreError, match="no array 'none'"):
        read_array(Files(root_url), "none")


def test_every_flipped_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    """Content, and with it the digest, never changes unnoticed: a read raises, or gives the same."""
    files = Files(tmp_path)
    data = np.random.default_rng(1).integers(0, 4, (3, 6, 6)).astype(np.uint8)
    digest = write_array(files, "x", data)
    flips = 0
    for path in [path for path in (tmp_path / "x").rglob("*") if path.is_file()]:
        sound = path.read_bytes()
        for position in range(len(sound)):
            torn = bytearray(sound)
            torn[position] ^= 0x10
            path.write_bytes(torn)
            try:
                found = digest_stored(files, "x")
            except CorruptStoreError:
                found = "raised"
            if path.name != "zarr.json":
                assert found in (digest, "raised"), (path, position)
            flips += 1
        path.write_bytes(sound)
    assert flips > 500
    assert digest_stored(files, "x") == digest


def test_what_reads_back_otherwise_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    digest = write_array(files, "x", np.arange(6))
    confirm_array(files, "x", digest)
    with pytest.raises(CorruptStoreError, match="read back as"):
        confirm_array(files, "x", digest_array(np.arange(7)))

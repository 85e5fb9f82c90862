"""Arrays of the workspace: sharded Zarr v3, written, synced, read back and hashed.

The hash of a stored array is :func:`rfss_core.digest.digest_array` of the decoded content as read back from the
store, so it is the same whatever the compression, the sharding and the version of zarr. Every shard is written,
even one that holds the fill value alone: zarr reads a missing shard as fill value without a word, and background is a
label like any other, so a reader must be able to tell the two apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from rfss_core.digest import digest_array
from rfss_core.errors import CorruptStoreError, RfssError, StoreError
from rfss_core.store.files import Files

SHARD_BYTES = 128 * 2**20
"""Decoded bytes of one shard, about: the unit of writing."""
ROW_BYTES = 64 * 2**10
"""Decoded bytes of an inner chunk of vectors, about: rows of a few hundred numbers are too small to store singly."""


def write_array(
    files: Files,
    path: str,
    data: npt.NDArray[Any],
    *,
    inner: tuple[int, ...] | None = None,
    shard_axis: int = 0,
    names: tuple[str, ...] | None = None,
    separator: Literal["/", "."] = ".",
) -> str:
    """Write one array and return the digest that it must read back as.

    It is not safe yet: force its folder to disk with :meth:`Files.sync_tree`, then :func:`confirm_array`.

    Args:
        files: the workspace's files.
        path: folder of the array, below the workspace.
        data: booleans, integers, floats or complex numbers, at least one axis.
        inner: shape of an inner chunk, the unit of reading. Default: one row along axis 0 (for arrays of one or two
            axes as many rows as make about 64 KiB).
        shard_axis: the axis along which inner chunks join into shards of about 128 MB.
        names: names of the axes.
        separator: ``.`` keeps a shard beside its ``zarr.json``; ``/``, OME-Zarr's own, nests a folder for each axis,
            each of which has to be synced.

    Returns:
        sha256 of dtype, shape and content, as 64 hexadecimal digits.

    Raises:
        ValueError: dtype, axes or chunk shape that cannot be stored.
        StorageFullError: no space is left.
    """
    if data.dtype.kind not in "biufc" or data.ndim == 0:
        raise ValueError(
            f"array '{path}' of dtype {data.dtype} and shape {data.shape} cannot be stored; use numbers with one axis "
            "or more, and tables for text"
        )
    chunks = inner if inner is not None else _default_inner(data)
    if len(chunks) != data.ndim or any(size < 1 for size in chunks):
        raise ValueError(f"chunk shape {chunks} does not fit array '{path}' of shape {data.shape}; give one per axis")
    with files.writing(path):
        array = zarr.create_array(
            files.zarr_store(path, read_only=False),
            shape=data.shape,
            dtype=data.dtype.newbyteorder("="),
            chunks=chunks,
            shards=_shards(data, chunks, shard_axis),
            compressors=[ZstdCodec(level=1, checksum=True)],
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": separator},
            dimension_names=names,
            config={"write_empty_chunks": True},
        )
        array[...] = data
    return digest_array(data)


def confirm_array(files: Files, path: str, expected: str) -> None:
    """Read an array back and compare its digest.

    Raises:
        CorruptStoreError: what was read back is not what was written.
    """
    found = digest_stored(files, path)
    if found != expected:
        raise CorruptStoreError(
            f"array '{path}' in workspace '{files.url}' read back as {found[:16]}, not {expected[:16]} as written; "
            "check the disk or the object store and start again"
        )


def open_array(files: Files, path: str) -> zarr.Array[Any]:
    """Open a stored array for reading.

    Raises:
        CorruptStoreError: a shard is missing.
        StoreError: there is no such array.
    """
    try:
        with reading(files, path):
            array = zarr.open_array(files.zarr_store(path, read_only=True), mode="r")
            found = array.nchunks_initialized
    except FileNotFoundError as error:
        raise StoreError(f"there is no array '{path}' in workspace '{files.url}'; run its stage again") from error
    shards = array.shards or array.chunks
    chunks_in_shard = math.prod(outer // inner for outer, inner in zip(shards, array.chunks, strict=True))
    expected = math.prod(math.ceil(size / outer) for size, outer in zip(array.shape, shards, strict=True))
    if found != expected * chunks_in_shard:
        raise CorruptStoreError(
            f"array '{path}' in workspace '{files.url}' has {found // chunks_in_shard} of {expected} shards; "
            "verify the workspace and run its stage again"
        )
    return array


def read_array(files: Files, path: str, rows: slice | None = None) -> npt.NDArray[Any]:
    """Return a stored array, or some of its rows along axis 0.

    Raises:
        CorruptStoreError: stored bytes that cannot be decoded, or a missing shard.
        StoreError: there is no such array.
    """
    array = open_array(files, path)
    with reading(files, path):
        return np.asarray(array[rows if rows is not None else ...])


def digest_stored(files: Files, path: str) -> str:
    """Return the digest of a stored array's decoded content, reading about one shard at a time.

    Equals :func:`rfss_core.digest.digest_array` of the whole array.
    """
    array = open_array(files, path)
    dtype = array.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{dtype.str}{array.shape}".encode())
    row_bytes = max(1, math.prod(array.shape[1:]) * dtype.itemsize)
    # Whole chunks, so that none is decoded twice.
    step = max(1, SHARD_BYTES // row_bytes // array.chunks[0]) * array.chunks[0]
    with reading(files, path):
        for start in range(0, array.shape[0], step):
            block = np.asarray(array[start : start + step])
            digest.update(np.ascontiguousarray(block).astype(dtype, copy=False).data)
    return digest.hexdigest()


@contextmanager
def reading(files: Files, path: str) -> Iterator[None]:
    """Turn what zarr and its codecs raise on damaged bytes into :class:`CorruptStoreError`."""
    try:
        yield
    except (RfssError, FileNotFoundError):
        raise
    except OSError as error:
        raise StoreError(f"reading '{path}' in workspace '{files.url}' failed: {error}") from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"'{path}' in workspace '{files.url}' is damaged ({error}); verify the workspace and run its stage again"
        ) from error


def _default_inner(data: npt.NDArray[Any]) -> tuple[int, ...]:
    rest = tuple(max(1, size) for size in data.shape[1:])
    rows = 1
    if data.ndim <= 2:
        rows = max(1, min(data.shape[0], ROW_BYTES // max(1, math.prod(rest) * data.dtype.itemsize)))
    return (rows, *rest)


def _shards(data: npt.NDArray[Any], chunks: tuple[int, ...], axis: int) -> tuple[int, ...]:
    counts = [max(1, math.ceil(size / chunk)) for size, chunk in zip(data.shape, chunks, strict=True)]
    across = math.prod(count * chunk for n, (count, chunk) in enumerate(zip(counts, chunks, strict=True)) if n != axis)
    fitting = SHARD_BYTES // max(1, across * chunks[axis] * data.dtype.itemsize)
    counts[axis] = max(1, min(counts[axis], fitting))
    return tuple(count * chunk for count, chunk in zip(counts, chunks, strict=True))

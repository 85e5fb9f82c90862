"""Stage outputs: the arrays and tables that each chunk of a stage owns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rfss_core.digest import digest_bytes
from rfss_core.errors import CorruptStoreError, StoreError, UnsafePathError
from rfss_core.store.arrays import confirm_array, digest_stored, read_array, write_array
from rfss_core.store.files import Files, safe_name
from rfss_core.store.records import Record, Records, Status

_TABLE = ".parquet"
_FILES = (_TABLE, ".json")
"""Outputs that are one file, hashed by their bytes; all others are arrays."""


class StageStore:
    """Outputs and completion records of one stage under one key.

    Different processes may write different chunks at the same time. Pickles as its address.

    Args:
        files: the workspace's files.
        name: name of the stage, for example ``embed``.
        key: digest (or a part of it) of all that the outputs depend on besides the chunk.
    """

    def __init__(self, files: Files, name: str, key: str) -> None:
        self.files = files
        self.name = name
        self.key = key
        self._records = Records(files, name, key)

    def __repr__(self) -> str:
        return f"StageStore({self.files.url!r}, {self.name!r}, {self.key!r})"

    def folder(self, chunk_id: str) -> str:
        """Return the folder of a chunk's outputs, below the workspace."""
        return f"stages/{self.name}/{self.key}/{safe_name(chunk_id, 'chunk id')}"

    def write_chunk(
        self,
        chunk_id: str,
        arrays: Mapping[str, npt.NDArray[Any]],
        tables: Mapping[str, pd.DataFrame] | None = None,
        *,
        inner_chunks: Mapping[str, tuple[int, ...]] | None = None,
    ) -> dict[str, str]:
        """Write a chunk's outputs, force them to disk, read them back and hash them.

        What an earlier attempt left is removed first, its record before its data, so that no record ever vouches
        for a mixture. Nothing counts as done until :meth:`complete`.

        Args:
            chunk_id: the chunk's id.
            arrays: name -> numbers of any shape. A name may hold a folder: ``<case_id>/labels``.
            tables: name (without suffix) -> table, stored as Parquet without its index.
            inner_chunks: shape of an inner chunk for some arrays; see :func:`rfss_core.store.arrays.write_array`.

        Returns:
            Path below the workspace -> sha256, for :meth:`complete`.

        Raises:
            StorageFullError: no space is left; the chunk has no record then.
            CorruptStoreError: what was read back is not what was written.
        """
        folder = self.folder(chunk_id)
        array_paths = {name: self._path(folder, name) for name in sorted(arrays)}
        table_paths = {name: self._path(folder, name) + _TABLE for name in sorted(tables or {})}
        self.remove(chunk_id)
        self.files.make_folder(folder)
        outputs = {}
        for name, path in array_paths.items():
            outputs[path] = write_array(self.files, path, arrays[name], inner=(inner_chunks or {}).get(name))
        self.files.sync_tree(folder)
        for path, digest in outputs.items():
            confirm_array(self.files, path, digest)
        for name, path in table_paths.items():
            outputs[path] = write_table(self.files, path, (tables or {})[name])
        return outputs

    def complete(
        self,
        chunk_id: str,
        input_digest: str,
        outputs: Mapping[str, str],
        *,
        status: Status = "done",
        reason: str | None = None,
        message: str = "",
        seconds: Mapping[str, float] | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Record:
        """Write the completion record of a chunk, the last step of its work.

        Args:
            chunk_id: the chunk's id.
            input_digest: digest of the chunk's input; :meth:`trusted` compares it.
            outputs: what :meth:`write_chunk` returned; empty for a quarantined chunk.
            status: ``done`` or ``quarantined``.
            reason: slug of the quarantine.
            message: sentence of the quarantine.
            seconds: wall time of ``read``, ``compute`` and ``write``.
            detail: plain JSON of the stage's own.
        """
        record = Record(
            stage=self.name,
            chunk=chunk_id,
            key=self.key,
            input_digest=input_digest,
            outputs=dict(outputs),
            status=status,
            reason=reason,
            message=message,
            seconds=dict(seconds or {}),
            detail=dict(detail or {}),
        )
        self._records.write(record)
        return record

    def trusted(self, chunk_id: str, input_digest: str) -> Record | None:
        """Return the record if the chunk's work can be skipped; see :meth:`Records.trusted`."""
        return self._records.trusted(chunk_id, input_digest)

    def trusted_many(self, inputs: Mapping[str, str]) -> Iterator[Record]:
        """Yield the records of those chunks (chunk id -> input digest) whose work can be skipped.

        Thousands of them cost little, on object stores too; see :meth:`Records.trusted_many`.
        """
        return self._records.trusted_many(inputs)

    def records(self, chunk_ids: Iterable[str] | None = None) -> dict[str, Record]:
        """Return the sound records by chunk id: of these chunks, or all, after one listing."""
        return self._records.all(chunk_ids)

    def verify(self, chunk_id: str) -> list[str]:
        """Hash a chunk's outputs again and return the paths that are damaged or missing.

        Raises:
            StoreError: the chunk has no sound record.
        """
        record = self._records.read(chunk_id)
        if record is None:
            raise StoreError(f"chunk '{chunk_id}' of stage '{self.name}' has no completion record; run the stage again")
        return verify_outputs(self.files, record)

    def distrust(self, chunk_id: str) -> None:
        """Remove a chunk's record alone, so that it is done again; readers may go on with its outputs until then."""
        self._records.remove(chunk_id)

    def remove(self, chunk_id: str) -> None:
        """Remove a chunk's record, then its outputs, so that it is done again."""
        self._records.remove(chunk_id)
        self.files.remove_tree(self.folder(chunk_id))

    def read_array(self, chunk_id: str, name: str, rows: slice | None = None) -> npt.NDArray[Any]:
        """Return one array of a chunk, or some of its rows along axis 0."""
        return read_array(self.files, self._path(self.folder(chunk_id), name), rows)

    def read_table(self, chunk_id: str, name: str) -> pd.DataFrame:
        """Return one table of a chunk; columns of lists hold Python lists."""
        return read_table(self.files, self._path(self.folder(chunk_id), name) + _TABLE)

    @staticmethod
    def _path(folder: str, name: str) -> str:
        if name.endswith(_FILES):
            raise UnsafePathError(f"output '{name}' must not end like a file; leave '{name[name.rindex('.') :]}' away")
        return "/".join((folder, *(safe_name(part, "output name") for part in name.split("/"))))


def write_table(files: Files, path: str, table: pd.DataFrame, schema: pa.Schema | None = None) -> str:
    """Write a table as Parquet atomically, read it back, and return the sha256 of its bytes.

    The same table gives the same bytes with the same version of pyarrow: pandas' own metadata, which names versions,
    is left out.

    Args:
        files: the workspace's files.
        path: file below the workspace.
        table: columns of numbers, text, booleans or lists of them; the index is dropped.
        schema: Arrow types of the columns. Default: inferred.
    """
    arrow = pa.Table.from_pandas(table, schema=schema, preserve_index=False).replace_schema_metadata(None)
    sink = io.BytesIO()
    pq.write_table(arrow, sink, compression="zstd")
    data = sink.getvalue()
    files.write_bytes(path, data)
    digest = digest_bytes(data)
    if digest_bytes(files.read_bytes(path)) != digest:
        raise CorruptStoreError(
            f"table '{path}' in workspace '{files.url}' read back otherwise than written; check the disk or the object "
            "store and start again"
        )
    return digest


def read_table(files: Files, path: str) -> pd.DataFrame:
    """Return a Parquet table; columns of lists hold Python lists.

    Raises:
        StoreError: there is no such table.
        CorruptStoreError: the bytes are no Parquet file.
    """
    data = files.read_bytes(path)
    try:
        arrow = pq.read_table(io.BytesIO(data))
        table = arrow.to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(
            f"table '{path}' in workspace '{files.url}' is damaged ({error}); verify the workspace and start again"
        ) from error
    for column in arrow.schema:
        if pa.types.is_list(column.type):
            table[column.name] = [
                value.tolist() if isinstance(value, np.ndarray) else value for value in table[column.name]
            ]
    return pd.DataFrame(table)


def verify_outputs(files: Files, record: Record) -> list[str]:
    """Hash the outputs of a record again and return the paths that are damaged or missing.

    Raises:
        StoreError: the storage itself does not answer, which says nothing about the outputs.
    """
    return sorted(path for path, expected in record.outputs.items() if not _sound(files, path, expected))


def _sound(files: Files, path: str, expected: str) -> bool:
    is_file = path.endswith(_FILES)
    if not files.exists(path if is_file else f"{path}/zarr.json"):
        return False
    try:
        return expected == (digest_bytes(files.read_bytes(path)) if is_file else digest_stored(files, path))
    except CorruptStoreError:
        return False

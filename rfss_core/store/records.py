"""Completion records: the only proof that a unit of work is done (invariant 2).

A record is written last, atomically and durably, after its outputs were written, synced, read back and hashed. It
carries a digest of itself, so that a damaged record is one more thing that is redone instead of believed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, get_args

from rfss_core.digest import digest_json
from rfss_core.store.files import Files, safe_name

Status = Literal["done", "quarantined"]
FOLDER = "records"
_BATCH = 1024
"""Records asked for in one go."""


@dataclass(frozen=True)
class Record:
    """What one unit of work left behind."""

    stage: str
    """Name of the stage, for example ``embed``."""
    chunk: str
    """Chunk id; a case id for stage ``ingest``."""
    key: str
    """Digest of all that the stage's output depends on besides the chunk."""
    input_digest: str
    """Digest of the chunk's own input."""
    outputs: dict[str, str] = field(default_factory=dict)
    """Path below the workspace -> sha256 (of decoded content for arrays, of bytes for tables)."""
    status: Status = "done"
    reason: str | None = None
    """Slug of a quarantine, as in :mod:`rfss_core.errors`."""
    message: str = ""
    """The quarantine's sentence."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of ``read``, ``compute`` and ``write``."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Plain JSON of the stage's own, for example the manifest row of an ingested case."""

    def to_bytes(self) -> bytes:
        """Return the record as JSON that carries its own digest."""
        body = dataclasses.asdict(self)
        return json.dumps(body | {"digest": digest_json(body)}, sort_keys=True, indent=1, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Record | None:
        """Return the record, or None where the bytes are not one that was written whole."""
        try:
            body = json.loads(data)
            digest = body.pop("digest")
            if digest != digest_json(body) or body["status"] not in get_args(Status):
                return None
            return cls(**body)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class Records:
    """Records of one stage under one key.

    Args:
        files: the workspace's files.
        stage: name of the stage.
        key: digest (or a part of it) of all that the stage's output depends on besides the chunk.

    Raises:
        UnsafePathError: a stage or key that cannot name a folder.
    """

    def __init__(self, files: Files, stage: str, key: str) -> None:
        self.files = files
        self.stage = safe_name(stage, "stage")
        self.key = safe_name(key, "stage key")
        self.folder = f"{FOLDER}/{self.stage}/{self.key}"

    def path(self, chunk: str) -> str:
        """Return where the record of a chunk lives, below the workspace."""
        return f"{self.folder}/{safe_name(chunk, 'chunk id')}.json"

    def read(self, chunk: str) -> Record | None:
        """Return the record of a chunk if there is a sound one."""
        data = self.files.read_many([self.path(chunk)])
        return self._sound(chunk, data[self.path(chunk)]) if data else None

    def trusted(self, chunk: str, input_digest: str) -> Record | None:
        """Return the record if the chunk's work can be skipped.

        A record is trusted when it is sound and was written for the same input. In a local workspace its outputs
        must also still exist; their content is the business of ``verify``.
        """
        record = self.read(chunk)
        return record if self._trusts(record, input_digest) else None

    def trusted_many(self, inputs: Mapping[str, str]) -> Iterator[Record]:
        """Yield the records of the chunks whose work can be skipped, as :meth:`trusted` says of each.

        Records are asked for by name, a thousand at a time: nothing is listed, and no more than those are held.

        Args:
            inputs: chunk id -> digest of its input.
        """
        chunks = iter(inputs)
        while batch := {self.path(chunk): chunk for chunk in islice(chunks, _BATCH)}:
            for path, data in self.files.read_many(batch).items():
                record = self._sound(batch[path], data)
                if record is not None and self._trusts(record, inputs[record.chunk]):
                    yield record

    def write(self, record: Record) -> None:
        """Write a record atomically and durably. Its outputs must be safe on disk already.

        Raises:
            ValueError: the record belongs to another stage or key.
            StorageFullError: no space is left; there is no record then.
        """
        if (record.stage, record.key) != (self.stage, self.key):
            raise ValueError(f"record of {record.stage}/{record.key} does not belong to {self.stage}/{self.key}")
        self.files.write_bytes(self.path(record.chunk), record.to_bytes())

    def remove(self, chunk: str) -> None:
        """Remove a record durably, so that the chunk is done again; a missing one is no error."""
        self.files.remove(self.path(chunk))

    def all(self, chunks: Iterable[str] | None = None) -> dict[str, Record]:
        """Return all sound records by chunk id, sorted.

        Args:
            chunks: read these alone. Default: whatever one listing finds.
        """
        if chunks is None:
            chunks = [name.removesuffix(".json") for name in self.files.names(self.folder) if name.endswith(".json")]
        chunks = sorted(set(chunks))
        found = self.files.read_many(self.path(chunk) for chunk in chunks)
        records = {chunk: self._sound(chunk, found[self.path(chunk)]) for chunk in chunks if self.path(chunk) in found}
        return {chunk: record for chunk, record in records.items() if record is not None}

    def _trusts(self, record: Record | None, input_digest: str) -> bool:
        if record is None or record.input_digest != input_digest:
            return False
        return not self.files.is_local or self.files.all_exist(record.outputs)

    def _sound(self, chunk: str, data: bytes) -> Record | None:
        record = Record.from_bytes(data)
        if record is None or (record.stage, record.key, record.chunk) != (self.stage, self.key, chunk):
            return None
        return record

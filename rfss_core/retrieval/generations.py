"""Generations of a stored index: immutable files named by their content, a manifest each, and one pointer.

Layout below a prefix::

    files/<first 32 digits of sha256><suffix>   trained index, shards, stored vectors, joined lists; never changed
    generations/<id>.json                       manifest, written after all its files; <id> is its digest
    CURRENT                                     id of the published generation, moved in one atomic step

A generation is what its manifest lists, so a new one shares the files of an old one without copies, on object stores
too. A writer that is killed leaves files that no manifest lists.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rfss_core.digest import digest_file, digest_json
from rfss_core.errors import CorruptIndexError, IndexNotFoundError, StoreError
from rfss_core.settings.index import IndexKind
from rfss_core.store.files import Files

FORMAT = 1
CURRENT = "CURRENT"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_Part):
    """One immutable file."""

    name: str = Field(pattern=r"^[0-9a-f]{32}\.(index|npy|ivfdata)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Shard(_Part):
    """A run of consecutive rows: inverted lists, and the vectors as they were given."""

    first: int = Field(ge=0)
    rows: int = Field(ge=1)
    lists: StoredFile
    vectors: StoredFile
    far_share: float
    """Share of the rows whose nearest list is farther than :attr:`Trained.far`."""


class Joined(_Part):
    """The inverted lists of all shards, each in one piece, for FAISS to map as ``OnDiskInvertedLists``."""

    lists: StoredFile
    """For each list its codes, then its rows (int64)."""
    sizes: StoredFile
    """Vectors in each list, int64 [nlist]."""


class Trained(_Part):
    """The trained, empty index that all shards of a generation were filled from."""

    file: StoredFile
    kind: IndexKind
    nlist: int
    dim: int
    rows: int
    """Vectors trained on."""
    far: float
    """99th percentile of the squared L2 distance to the nearest list, over held-out groups."""


class Probing(_Part):
    """How many lists are searched where a filter leaves at least this share of the rows, and what that finds."""

    share: float
    nprobe: int
    recall: float
    """Measured on queries that nprobe was not chosen on."""


class Tuning(_Part):
    """Recall against exact search over all rows."""

    k: int
    target: float
    queries: int
    """Stored vectors that recall was measured on; rows of their groups were no neighbours."""
    # An int stays one, as it stands in a manifest's digest.
    factor: int | float
    """Candidates of a query, in multiples of k, that are measured again from the stored vectors."""
    levels: tuple[Probing, ...]
    """By falling share; the first is the unfiltered search."""

    @property
    def met(self) -> bool:
        """Whether every level reached the target."""
        return all(level.recall >= self.target for level in self.levels)


class Generation(_Part):
    """The manifest of one generation."""

    format: int = FORMAT
    faiss: str
    """Version that wrote the files."""
    trained: Trained
    shards: tuple[Shard, ...]
    held: StoredFile
    """Rows that recall is measured on: int64 [m, 2] of :func:`rfss_core.retrieval.tuning.hold_out`."""
    tuning: Tuning
    parent: str | None = None
    """Generation that this one added a shard to."""
    joined: Joined | None = None
    """What is searched in place of the shards' own lists; None where there is one shard, or this was not asked for."""

    @property
    def id(self) -> str:
        """Name of the generation: digest of its content."""
        return digest_json(self.model_dump(mode="json"))[:16]

    @property
    def rows(self) -> int:
        """Vectors in the index."""
        return sum(shard.rows for shard in self.shards)


class Generations:
    """The stored generations of one index.

    Args:
        files: the workspace, or any folder or object store.
        prefix: folder of this index below it.
        cache: local folder for copies of a remote store's files; None: ``~/.cache/rfss/index``.
    """

    def __init__(self, files: Files, prefix: str, cache: str | None = None) -> None:
        self.files = files
        self.prefix = prefix.strip("/")
        self._cache = Path(cache).expanduser() if cache else Path.home() / ".cache" / "rfss" / "index"

    def __repr__(self) -> str:
        return f"Generations({self.files.url!r}, {self.prefix!r})"

    def put(self, source: Path, suffix: str) -> StoredFile:
        """Take a file of ``files.scratch()`` into the store, under a name that its content decides."""
        digest, size = digest_file(source), source.stat().st_size
        stored = StoredFile(name=f"{digest[:32]}{suffix}", sha256=digest, size=size)
        self.files.adopt(source, self._file(stored))
        return stored

    def publish(self, generation: Generation) -> None:
        """Write the manifest of a generation whose files are all there, and make it the current one.

        Raises:
            IndexNotFoundError: a file is missing.
            CorruptIndexError: a file has another size.
        """
        for stored in _files_of(generation):
            self.check_size(stored)
        data = generation.model_dump_json(indent=1) + "\n"
        self.files.write_bytes(f"{self.prefix}/generations/{generation.id}.json", data.encode())
        self.files.write_bytes(f"{self.prefix}/{CURRENT}", generation.id.encode())

    def read(self, generation: str | None = None) -> Generation:
        """Return a generation's manifest; by default the current one's.

        Raises:
            IndexNotFoundError: nothing was published here, or not this generation.
            CorruptIndexError: the manifest is not what was published.
        """
        name = generation if generation is not None else self._current()
        path = f"{self.prefix}/generations/{name}.json"
        if not self.files.exists(path):
            raise IndexNotFoundError(f"'{self.files.url}' has no index generation '{name}' at '{path}'; build it again")
        try:
            found = Generation.model_validate_json(self.files.read_bytes(path))
        except ValidationError as error:
            raise CorruptIndexError(f"index manifest '{path}' is damaged ({error.errors()[0]['msg']})") from error
        if found.id != name:
            raise CorruptIndexError(
                f"index manifest '{path}' holds generation '{found.id}', not '{name}': it was swapped or edited; "
                "build the index again"
            )
        return found

    def names(self) -> list[str]:
        """Return the ids of all generations whose manifests were written."""
        return [name.removesuffix(".json") for name in self.files.names(f"{self.prefix}/generations")]

    def path(self, stored: StoredFile, check: bool = True) -> Path:
        """Return a local path of a file, after its size and (``check``) its sha256 were compared with the manifest's.

        FAISS maps local files only: a remote file is copied once into the cache.

        Raises:
            IndexNotFoundError: the file is missing.
            CorruptIndexError: it is truncated, or not the file that the manifest means.
        """
        self.check_size(stored)
        local = self.files.local_path(self._file(stored))
        if local is None:
            local = self._cache / stored.name
            if not local.is_file() or local.stat().st_size != stored.size:
                self.files.fetch(self._file(stored), local)
        if check and _digest(local) != stored.sha256:
            raise CorruptIndexError(
                f"index file '{local}' has another sha256 than its manifest says: it is damaged or of another "
                "generation; restore it, or build the index again"
            )
        return local

    def check_size(self, stored: StoredFile) -> None:
        """Check that a file is there, and as long as its manifest says.

        Raises:
            IndexNotFoundError: it is missing.
            CorruptIndexError: it has another size.
        """
        path = self._file(stored)
        if not self.files.exists(path):
            raise IndexNotFoundError(
                f"index file '{path}' is missing from '{self.files.url}'; restore it, or build the index again"
            )
        size = self.files.size(path)
        if size != stored.size:
            raise CorruptIndexError(
                f"index file '{path}' has {size} bytes, its manifest says {stored.size}: it is truncated or swapped; "
                "restore it, or build the index again"
            )

    def check(self, generation: Generation) -> None:
        """Compare every file of a generation with its manifest, its bytes too.

        Raises:
            IndexNotFoundError: a file is missing.
            CorruptIndexError: one is damaged.
        """
        for stored in _files_of(generation):
            self.path(stored)

    def sweep(self, keep: int = 2) -> list[str]:
        """Remove old generations and the files that no kept one lists.

        Only for when no build is under way: files of a generation that is not yet published belong to none.

        Args:
            keep: generations to keep: the current one and its nearest ancestors.

        Returns:
            The ids of the removed generations.
        """
        kept = [self.read()]
        while len(kept) < keep and kept[-1].parent is not None and kept[-1].parent in self.names():
            kept.append(self.read(kept[-1].parent))
        names = {generation.id for generation in kept}
        removed = [name for name in self.names() if name not in names]
        for name in removed:
            self.files.remove(f"{self.prefix}/generations/{name}.json")
        listed = {stored.name for generation in kept for stored in _files_of(generation)}
        for name in set(self.files.names(f"{self.prefix}/files")) - listed:
            self.files.remove(f"{self.prefix}/files/{name}")
        return removed

    def _current(self) -> str:
        path = f"{self.prefix}/{CURRENT}"
        if not self.files.exists(path):
            raise IndexNotFoundError(f"'{self.files.url}' has no published index at '{self.prefix}'; build one")
        return self.files.read_bytes(path).decode().strip()

    def _file(self, stored: StoredFile) -> str:
        return f"{self.prefix}/files/{stored.name}"


_digests: dict[tuple[str, int, int, int], str] = {}


def _digest(path: Path) -> str:
    """Return a file's sha256, computed once a process as long as its inode, size and time of change stay."""
    status = os.stat(path)  # noqa: PTH116 - one system call for all three
    key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _digests:
        try:
            _digests[key] = digest_file(path)
        except OSError as error:
            raise StoreError(f"index file '{path}' cannot be read: {error}") from error
    return _digests[key]


def _files_of(generation: Generation) -> list[StoredFile]:
    parts = [(shard.lists, shard.vectors) for shard in generation.shards]
    joined = [generation.joined.sizes, generation.joined.lists] if generation.joined is not None else []
    return [generation.trained.file, generation.held, *(stored for pair in parts for stored in pair), *joined]

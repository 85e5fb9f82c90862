"""Files of a workspace: one folder or one prefix of an object store.

Everything that RFSS keeps goes through :class:`Files`, so that durability and path safety are decided once.
Locally a file is written beside its place, synced, renamed, and its folder synced, so that a crash leaves the old
bytes or the new ones. Object stores make a put visible as a whole, which is the same promise.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import zarr

from rfss_core.errors import InputError, StoreError, UnsafePathError
from rfss_core.store.durable import PARTIAL, create_file, make_folders, sync, write_file
from rfss_core.store.faults import storing
from rfss_core.store.remote import connect

_LOCAL_SCHEMES = ("file://", "local://")
_SYNC_THREADS = 8
_REQUESTS = 64
"""Requests to an object store under way at once."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,149}")


def safe_name(name: str, what: str) -> str:
    """Return ``name`` if it can be one part of a stored path.

    Args:
        name: 1 to 150 ASCII letters, digits, ``.``, ``_`` and ``-``, not starting with ``.`` or ``-``.
        what: the noun for the message, for example ``case id``.

    Raises:
        UnsafePathError: the name holds anything else.
    """
    if not _NAME.fullmatch(name):
        raise UnsafePathError(
            f"{what} '{name}' cannot name a stored folder; use 1 to 150 ASCII letters, digits, '.', '_' and '-'"
        )
    return name


class Files:
    """Byte storage under one root, addressed by relative POSIX paths.

    Cheap to create; pickles as its URL. Different processes may write different paths at the same time.
    Credentials and end points of object stores come from their own environment variables or fsspec's configuration.

    Args:
        url: local folder, ``file://`` URL, or any URL that fsspec knows (``s3://bucket/prefix``, ``memory://x``).

    Raises:
        InputError: fsspec does not know the URL's scheme, or the package that serves it is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.root: Path | None = None
        self._fs: Any = None
        self._base = ""
        scheme = next((known for known in _LOCAL_SCHEMES if text.startswith(known)), None)
        if scheme is not None or "://" not in text:
            self.root = Path(os.path.abspath(Path(text.removeprefix(scheme or "")).expanduser()))  # noqa: PTH100
            self.url = str(self.root)
            return
        self.url = text.rstrip("/")
        try:
            self._fs, self._base = connect(self.url)
        except (ValueError, ImportError) as error:
            raise InputError(f"workspace '{self.url}' cannot be opened: {error}") from error

    def __repr__(self) -> str:
        return f"Files({self.url!r})"

    def __reduce__(self) -> tuple[type[Files], tuple[str]]:
        return (Files, (self.url,))

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return self.root is not None

    def local_path(self, path: str) -> Path | None:
        """Return the local path, or None where the root is not a folder of this machine.

        Raises:
            UnsafePathError: the path is absolute, holds ``..``, or a link leads it out of the root.
        """
        parts = _parts(path)
        if self.root is None:
            return None
        found = self.root.joinpath(*parts)
        root = self.root.resolve()
        if not found.resolve().is_relative_to(root):
            raise UnsafePathError(f"path '{path}' leaves the workspace '{self.root}' through a link; remove the link")
        return found

    def exists(self, path: str) -> bool:
        """Return whether a file or folder is there."""
        local = self.local_path(path)
        with self._storing("looking for", path):
            return local.exists() if local is not None else bool(self._fs.exists(self._remote(path)))

    def all_exist(self, paths: Iterable[str]) -> bool:
        """Return whether all these files and folders are there; only for a root that is a folder, and cheap."""
        assert self.root is not None, f"'{self.url}' is no folder"
        return all(os.path.exists(os.path.join(self.root, *_parts(path))) for path in paths)  # noqa: PTH110, PTH118

    def read_bytes(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises:
            StoreError: the file is missing or cannot be read.
        """
        local = self.local_path(path)
        with self._storing("reading", path):
            return local.read_bytes() if local is not None else bytes(self._fs.cat_file(self._remote(path)))

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of those files that exist; object stores are asked for many of them at once."""
        wanted = list(paths)
        if self.root is not None:
            found = {}
            folders: dict[PurePosixPath, Path | None] = {}
            for path in wanted:
                pure = PurePosixPath(path)
                if pure.parent not in folders:
                    folders[pure.parent] = self.local_path(str(pure.parent))
                local = self.root.joinpath(*_parts(path))
                with self._storing("reading", path):
                    if local.is_symlink():
                        self.local_path(path)
                    if local.is_file():
                        found[path] = local.read_bytes()
            return found
        remote = {self._remote(path): path for path in wanted}
        if not remote:
            return {}
        with self._storing("reading", wanted[0]):
            answers = self._fs.cat(list(remote), on_error="return", batch_size=_REQUESTS)
        found = {}
        for name, value in answers.items():
            path = remote[name]
            if isinstance(value, bytes):
                found[path] = value
            elif not isinstance(value, FileNotFoundError):
                raise StoreError(f"reading '{path}' in workspace '{self.url}' failed: {value}") from value
        return found

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically and durably: after a crash it is there as a whole or not at all.

        Raises:
            StorageFullError: no space is left; nothing of the file remains.
            StoreError: the file cannot be written.
        """
        local = self.local_path(path)
        with self._storing("writing", path):
            if local is None:
                self._fs.pipe_file(self._remote(path), data)
                return
            write_file(local, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless there is one, durably; of several writers at once one alone succeeds.

        Object stores are asked for a conditional put (``If-None-Match: *`` on S3). A store without one is written
        to and read back: there two writers of the same moment may both be told that they succeeded.

        Args:
            path: the file.
            data: its bytes; writers that compete must not write the same.

        Returns:
            Whether these bytes are there now.

        Raises:
            StoreError: the file cannot be written.
        """
        local = self.local_path(path)
        with self._storing("creating", path):
            if local is not None:
                return create_file(local, data)
            remote = self._remote(path)
            try:
                self._fs.pipe_file(remote, data, mode="create")
            except FileExistsError:
                pass
            except (OSError, TypeError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EINVAL):
                    raise
                # EINVAL is how s3fs reports the refusal of servers that do not name the condition that failed.
                if getattr(error, "errno", errno.ENOSYS) == errno.ENOSYS and not self._fs.exists(remote):
                    self._fs.pipe_file(remote, data)
            # The answer to an earlier attempt may be lost: what is there decides.
            return bytes(self._fs.cat_file(remote)) == data

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a local path for another library to write a file to; what is left there at the end is removed.

        Where the root is a folder, the path is on its file system, so that :meth:`adopt` is one rename.
        """
        if self.root is not None:
            make_folders(self.root)
        folder = self.root or Path(tempfile.gettempdir())
        partial = folder / f"scratch.{uuid.uuid4().hex}.partial"
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def adopt(self, source: Path, path: str) -> None:
        """Move a file of :meth:`scratch` to its place, as atomically and durably as :meth:`write_bytes`.

        Raises:
            StorageFullError: no space is left.
            StoreError: the file cannot be written.
        """
        local = self.local_path(path)
        with self._storing("writing", path):
            if local is None:
                self._fs.put_file(str(source), self._remote(path))
                return
            make_folders(local.parent)
            sync(source)
            source.replace(local)
            sync(local.parent)

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to a local path outside the workspace; it is there as a whole or not at all.

        Raises:
            StoreError: the file is missing or cannot be read.
        """
        local = self.local_path(path)
        with self._storing("reading", path):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
            try:
                if local is not None:
                    shutil.copyfile(local, partial)
                else:
                    self._fs.get_file(self._remote(path), str(partial))
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def size(self, path: str) -> int:
        """Return a file's bytes.

        Raises:
            StoreError: the file is missing.
        """
        local = self.local_path(path)
        with self._storing("looking for", path):
            return local.stat().st_size if local is not None else int(self._fs.size(self._remote(path)))

    def names(self, path: str) -> list[str]:
        """Return the sorted names directly in a folder (one listing); empty where there is no such folder."""
        local = self.local_path(path)
        with self._storing("listing", path):
            if local is not None:
                found = os.listdir(local) if local.is_dir() else []  # noqa: PTH208
            else:
                try:
                    found = [PurePosixPath(name).name for name in self._fs.ls(self._remote(path), detail=False)]
                except FileNotFoundError:
                    found = []
        return sorted(name for name in found if not PARTIAL.fullmatch(name))

    def remove(self, path: str) -> None:
        """Remove one file durably; a missing one is no error."""
        local = self.local_path(path)
        with self._storing("removing", path):
            if local is not None:
                # Not `if it exists`: another process may be removing it, too.
                with suppress(FileNotFoundError):
                    local.unlink()
                    sync(local.parent)
                return
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._remote(path))

    def remove_tree(self, path: str) -> None:
        """Remove a folder and all below it durably; a missing one is no error."""
        if not _parts(path):
            raise UnsafePathError(f"the workspace '{self.url}' itself is never removed; name a folder in it")
        local = self.local_path(path)
        with self._storing("removing", path):
            if local is not None:
                if local.exists():
                    shutil.rmtree(local)
                    sync(local.parent)
                return
            with suppress(FileNotFoundError):
                self._fs.rm(self._remote(path), recursive=True)

    def make_folder(self, path: str) -> None:
        """Create a folder durably, for another library to write into; object stores need none."""
        local = self.local_path(path)
        if local is not None:
            with self._storing("creating", path):
                make_folders(local)

    def sync_tree(self, path: str) -> None:
        """Force to disk what another library wrote into a folder of :meth:`make_folder`."""
        local = self.local_path(path)
        if local is None:
            return
        with self._storing("syncing", path):
            files, folders = [], []
            for folder, _, names in os.walk(local):
                folders.append(Path(folder))
                files += [Path(folder, name) for name in names]
            # Side by side, so that the file system's journal commits them together.
            with ThreadPoolExecutor(min(_SYNC_THREADS, 1 + len(files))) as pool:
                list(pool.map(sync, files))
                list(pool.map(sync, folders))

    def sweep_partials(self, *, older_than_s: float = 3600.0) -> list[str]:
        """Remove temporary files that killed writers left behind, and return their paths.

        Args:
            older_than_s: seconds since the file's last change; younger ones may belong to a writer at work.
        """
        if self.root is None:
            return []
        swept = []
        now = time.time()
        with self._storing("sweeping", "."):
            for folder, _, files in os.walk(self.root):
                for name in files:
                    if not PARTIAL.fullmatch(name):
                        continue
                    path = Path(folder, name)
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode) and now - status.st_mtime >= older_than_s:
                        path.unlink(missing_ok=True)
                        swept.append(path.relative_to(self.root).as_posix())
        return sorted(swept)

    def zarr_store(self, path: str, *, read_only: bool) -> zarr.storage.StoreLike:
        """Return a zarr store rooted at a folder, so that zarr touches nothing beside it."""
        local = self.local_path(path)
        if local is not None:
            return zarr.storage.LocalStore(local, read_only=read_only)
        fs, base = connect(self.url, asynchronous=True)
        return zarr.storage.FsspecStore(fs, read_only=read_only, path="/".join((base, *_parts(path))))

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Turn errors of other libraries that write below ``path`` into RFSS's own."""
        self.local_path(path)
        with self._storing("writing", path):
            yield

    def _remote(self, path: str) -> str:
        return "/".join((self._base, *_parts(path)))

    def _storing(self, action: str, path: str) -> AbstractContextManager[None]:
        return storing(action, path, self.url, self.is_local)


def _parts(path: str) -> tuple[str, ...]:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise UnsafePathError(f"path '{path}' may leave the workspace; use a relative path without '..' and '\\'")
    return pure.parts

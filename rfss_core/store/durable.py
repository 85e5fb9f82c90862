"""Durable steps on a local file system: what they leave behind survives a crash, as a whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
"""Temporary files of this module and of zarr's ``LocalStore`` (``<name>.<uuid4 hex>.partial``)."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_file(path: Path, data: bytes) -> None:
    """Write or replace a file.

    Raises:
        OSError: it cannot be written; the old bytes stay, and nothing of the new ones.
    """
    with _partial(path, data) as partial:
        partial.replace(path)
    sync(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write a file unless there is one, and return whether it was written.

    Of several writers at once exactly one succeeds, on network file systems too.
    """
    with _partial(path, data) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here (FAT, some FUSE systems): exclusive as well, but a crash may leave it empty.
            try:
                with path.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            except FileExistsError:
                return False
    sync(path.parent)
    return True


def make_folders(folder: Path) -> None:
    """Create a folder and those above it that are missing."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync(new.parent)


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _partial(path: Path, data: bytes) -> Iterator[Path]:
    make_folders(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)

"""Output: files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from rfss_core.errors import StorageFullError, StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file by temporary file, fsync and rename, making its folder where needed.

    Args:
        path: the file; an old one is replaced.
        data: its bytes.

    Raises:
        StorageFullError: no space is left.
        StoreError: the file cannot be written.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(f"no space is left to write '{path}'; free some and run again") from error
        raise StoreError(f"'{path}' cannot be written: {error.strerror or error}; check the folder's rights") from error

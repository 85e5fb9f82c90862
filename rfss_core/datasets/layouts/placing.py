"""Placing: files of a data set copied or linked to where RFSS reads them, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path

from rfss_core.errors import StorageFullError, StoreError

_NO_LINK = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


def place(source: Path, target: Path, link: bool) -> bool:
    """Copy a file, or hard-link it where asked for and possible.

    Returns:
        Whether it was linked.

    Raises:
        StorageFullError: no space is left.
        StoreError: it cannot be written.
    """
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        linked = link and _linked(source, partial)
        if not linked:
            shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no space is left to write '{target}'; free some and run again") from error
        raise StoreError(
            f"'{target}' cannot be written: {error.strerror or error}; check the folder's rights"
        ) from error
    return linked


def _linked(source: Path, partial: Path) -> bool:
    try:
        # A link to a link would hang on it.
        os.link(source.resolve(), partial)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True

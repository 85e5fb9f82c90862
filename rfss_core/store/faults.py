"""What goes wrong with storage, in the store's own errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from rfss_core.errors import RfssError, StorageFullError, StoreAccessError, StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def storing(action: str, path: str, url: str, local: bool) -> Iterator[None]:
    """Turn what storage raises into errors that say what to do.

    Args:
        action: what is tried, such as ``writing``.
        path: relative, in the workspace.
        url: of the workspace.
        local: whether it is a folder of this machine.

    Raises:
        StorageFullError: no space is left.
        StoreAccessError: an object store refuses access, or there is no such bucket.
        StoreError: anything else.
    """
    try:
        yield
    except RfssError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                f"no space left while {action} '{path}' in workspace '{url}'; free some and start the same "
                "command again: finished work is kept"
            ) from error
        if not local and isinstance(error, PermissionError):
            raise StoreAccessError(
                f"the object store refuses access to workspace '{url}' ({error}); check its URL and the "
                "credentials: for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the block that names the store"
            ) from error
        if not local and action == "writing" and isinstance(error, FileNotFoundError):
            # Whatever else is missing, a put creates it.
            raise StoreAccessError(
                f"workspace '{url}': there is no such bucket; create it, or correct the URL"
            ) from error
        hint = "" if error.errno != errno.EACCES else "; check the folder's permissions"
        raise StoreError(f"{action} '{path}' in workspace '{url}' failed: {error}{hint}") from error
    except Exception as error:
        # Clients of object stores have error types of their own, such as botocore's missing credentials.
        if local:
            raise
        raise StoreError(
            f"{action} '{path}' in workspace '{url}' failed: {error}; check the URL, credentials and network"
        ) from error

"""Object stores: one fsspec file system that rides out errors which pass.

Both :class:`rfss_core.store.files.Files` and zarr reach an object store through :class:`RetryingFileSystem`, so that
what is tried again, and for how long, is decided once. Waits follow "exponential back-off and full jitter"
(M. Brooker, AWS Architecture Blog, 2015): many workers that met the same outage do not come back in step.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from rfss_core.errors import StoreAccessError

log = logging.getLogger("rfss")

Answer = TypeVar("Answer")

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_PASSING_ERRNO = {
    None,
    errno.EIO,
    errno.EREMOTEIO,
    errno.EBUSY,
    errno.EAGAIN,
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
}
_PASSING_TYPES = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.exceptions.ResponseStreamingError",
    "botocore.parsers.ResponseParserError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
}
"""By name: none of these packages need be installed."""
_S3 = ("s3://", "s3a://")


@dataclass(frozen=True)
class Patience:
    """How long and how often a call to an object store is tried again."""

    total_s: float = 120.0
    """Seconds from the first failure after which the last error is raised."""
    first_s: float = 0.1
    """Upper bound of the first wait; each later bound is twice as high."""
    longest_s: float = 10.0
    """Upper bound of any wait."""

    def wait_s(self, attempt: int) -> float:
        """Return how long to wait after the given attempt (from 0): uniform between nothing and its bound."""
        # Jitter decides when a call is made, never what is written.
        return random.uniform(0.0, min(self.longest_s, self.first_s * 2.0 ** min(attempt, 30)))  # noqa: S311


PATIENCE = Patience()


def passes(error: BaseException) -> bool:
    """Return whether trying again may help: the network, a busy or failing server, a torn connection."""
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if any(f"{kind.__module__}.{kind.__qualname__}" in _PASSING_TYPES for kind in type(error).__mro__):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


def raise_refusal(error: OSError, url: str, *, writing: bool) -> None:
    """Say what an object store's refusal means to a user; do nothing for other errors.

    Args:
        error: the store's.
        url: of the workspace.
        writing: whether something was to be written: whatever else is missing, a put creates it.

    Raises:
        StoreAccessError: the store refuses the credentials, or has no such bucket.
    """
    if isinstance(error, PermissionError):
        raise StoreAccessError(
            f"the object store refuses access to workspace '{url}' ({error}); check its URL and the credentials: for "
            "S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the block that names the store"
        ) from error
    if writing and isinstance(error, FileNotFoundError):
        raise StoreAccessError(f"workspace '{url}': there is no such bucket; create it, or correct the URL") from error


class RetryingFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """Hands every call to another file system, and tries again what fails for a passing reason.

    A call that failed may have been carried out all the same, its answer lost. All calls here but one may be made
    twice; creating a file exclusively may not: see :meth:`rfss_core.store.files.Files.create`.

    Args:
        fs: where the bytes are; a synchronous one runs in threads.
        patience: how long to go on.
        asynchronous: whether the caller awaits the underscored methods in an event loop of its own, as zarr does.
    """

    cachable = False

    def __init__(self, fs: Any, patience: Patience = PATIENCE, *, asynchronous: bool = False) -> None:
        super().__init__(asynchronous=asynchronous)
        self.inner = fs if fs.async_impl else AsyncFileSystemWrapper(fs, asynchronous=asynchronous)
        self.patience = patience
        self.protocol = self.inner.protocol
        self.root_marker = self.inner.root_marker
        self._strip_protocol = self.inner._strip_protocol  # noqa: SLF001
        self._parent = self.inner._parent  # noqa: SLF001

    async def _again(
        self, call: Callable[..., Awaitable[Answer]], path: Any, *arguments: Any, gone: Any = None, **options: Any
    ) -> Any:
        began: float | None = None
        attempt = 0
        while True:
            try:
                return await call(path, *arguments, **options)
            except FileNotFoundError:
                # An earlier attempt removed it, and its answer was lost.
                if attempt and gone is not None:
                    return gone
                raise
            except Exception as error:
                now = time.monotonic()
                began = now if began is None else began
                if not passes(error) or now - began >= self.patience.total_s:
                    raise
                if attempt in (3, 9):
                    log.warning("'%s' does not answer (%s); trying again", path, error)
                await asyncio.sleep(self.patience.wait_s(attempt))
                attempt += 1

    async def _info(self, path: str, **options: Any) -> Any:
        return await self._again(self.inner._info, path, **options)  # noqa: SLF001

    async def _exists(self, path: str, **options: Any) -> bool:
        # fsspec's own takes any error for "no", which would make an outage look like an empty workspace.
        try:
            await self._info(path, **options)
        except FileNotFoundError:
            return False
        return True

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return await self._again(self.inner._ls, path, detail=detail, **options)  # noqa: SLF001

    async def _find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> Any:
        find = self.inner._find  # noqa: SLF001
        return await self._again(find, path, maxdepth=maxdepth, withdirs=withdirs, **options)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        return bytes(await self._again(self.inner._cat_file, path, start=start, end=end, **options))  # noqa: SLF001

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode != "overwrite":
            # Not all file systems know the argument.
            options["mode"] = mode
        await self._again(self.inner._pipe_file, path, value, **options)  # noqa: SLF001

    async def _put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        await self._again(self.inner._put_file, lpath, rpath, **options)  # noqa: SLF001

    async def _get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        await self._again(self.inner._get_file, rpath, lpath, **options)  # noqa: SLF001

    async def _rm_file(self, path: str, **options: Any) -> None:
        await self._again(self.inner._rm_file, path, gone=True, **options)  # noqa: SLF001

    async def _rm(self, path: str, recursive: bool = False, **options: Any) -> None:
        await self._again(self.inner._rm, path, recursive=recursive, gone=True, **options)  # noqa: SLF001


def connect(url: str, *, asynchronous: bool = False) -> tuple[RetryingFileSystem, str]:
    """Return the file system of a URL and the path on it.

    Credentials and end points come from the store's own environment variables or fsspec's configuration.

    Args:
        url: any URL that fsspec knows.
        asynchronous: as for :class:`RetryingFileSystem`.

    Raises:
        ValueError: fsspec does not know the scheme.
        ImportError: the package that serves it is not installed.
    """
    # A listing that another process's writes do not refresh would make resume lie.
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(_S3):
        # One attempt each: all patience is RetryingFileSystem's.
        options["config_kwargs"] = {"retries": {"mode": "standard", "max_attempts": 1}, "max_pool_connections": 64}
        # Above 1, s3fs asks for the size of each file before it reads it: twice the requests for small ones.
        options["max_concurrency"] = 1
    fs, path = url_to_fs(url, asynchronous=asynchronous, **options)
    if url.startswith(_S3):
        fs.retries = 1
    return RetryingFileSystem(fs, asynchronous=asynchronous), path.rstrip("/")

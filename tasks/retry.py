"""Transient errors: which they are, and how long to wait for the next attempt."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rfss_core.errors import CorruptStoreError, RfssError, StorageFullError, StoreError
from rfss_core.settings import ExecutionSettings

Result = TypeVar("Result")

_LASTING = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.ENODEV, errno.ENOSYS, errno.EXDEV, errno.EBADF,
    errno.EFBIG, errno.ENOEXEC, errno.ENOTEMPTY,
}  # fmt: skip
"""Trying again meets these again."""
_PASSING = {"ClientError", "ClientOSError", "ServerDisconnectedError", "ClientPayloadError", "HTTPClientError",
            "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
            "ResponseStreamingError", "IncompleteReadError", "HttpError"}  # fmt: skip
"""Errors of HTTP clients (aiohttp, botocore, gcsfs), which stand below object stores and are no OSErrors."""
_REFUSALS = {"NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchKey", "403", "404"}
"""Codes of botocore's ClientError that trying again meets again."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015)."""

    attempts: int = 8
    first_s: float = 0.5
    limit_s: float = 30.0

    @classmethod
    def of(cls, settings: ExecutionSettings) -> RetryPolicy:
        """Return the policy that the settings describe."""
        return cls(settings.attempts, settings.backoff_s, settings.backoff_limit_s)

    def pause(self, attempt: int) -> float:
        """Return seconds to wait after the given attempt, counted from 1; drawn at random."""
        # Chunks that failed together must not come back together. Half is fixed, so that an outage is waited out.
        longest = min(self.limit_s, self.first_s * 2.0 ** min(attempt - 1, 60))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


@dataclass(frozen=True)
class Retry:
    """One attempt that failed for a moment."""

    attempt: int
    """From 1."""
    reason: str
    message: str


def is_transient(error: BaseException) -> bool:
    """Return whether the same work may succeed a moment later: storage or network were away.

    A file that is missing, forbidden or damaged, a full disk and everything that is no input or output are not.
    """
    if isinstance(error, StorageFullError | CorruptStoreError | FileNotFoundError | PermissionError):
        return False
    if isinstance(error, StoreError):
        # The store's own message says what failed, its cause whether that lasts.
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, RfssError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    if type(error).__name__ in _PASSING:
        response = getattr(error, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        return str(code) not in _REFUSALS
    return False


def call_with_retries(
    call: Callable[[], Result], policy: RetryPolicy, noted: list[Retry], sleep: Callable[[float], None] = time.sleep
) -> Result:
    """Call until it succeeds, fails for a lasting reason, or the attempts are used up.

    Args:
        call: safe to repeat.
        policy: how often and how long to wait.
        noted: receives each attempt that failed for a moment and was followed by another.
        sleep: waits.
    """
    for attempt in range(1, policy.attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == policy.attempts or not is_transient(error):
                raise
            noted.append(Retry(attempt, reason_of(error), describe(error)))
        sleep(policy.pause(attempt))
    raise AssertionError("unreachable: the last attempt returns or raises")


def reason_of(error: BaseException) -> str:
    """Return the slug of an error: our own types' reason; ``out_of_memory``; else ``unexpected_error``."""
    if isinstance(error, RfssError):
        return error.reason
    # torch's is a RuntimeError; importing torch for its type would cost every process a second.
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "out_of_memory" if short else "unexpected_error"


def describe(error: BaseException) -> str:
    """Return one line for an error: our own message as it stands, others with their type."""
    if isinstance(error, RfssError):
        return str(error)
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

"""The error tree: every error that RFSS raises on purpose.

Each type inherits :class:`RfssError` and the natural builtin, so that ``except ValueError`` keeps working for
callers who do not know RFSS. A message names the offending value and the next step. ``reason`` is the stable
machine-readable slug that the quarantine manifest, events and summaries carry.
"""

from __future__ import annotations

from typing import ClassVar


class RfssError(Exception):
    """Root of all errors that RFSS raises on purpose."""

    reason: ClassVar[str] = "error"


class InputError(RfssError, ValueError):
    """The caller's input cannot be used at all; the command ends with exit code 2."""

    reason = "bad_input"


class InputNotFoundError(InputError, FileNotFoundError):
    """A folder, file or glob that was named does not exist or matches nothing."""

    reason = "not_found"

    # OSError's __str__ rearranges its arguments; ours is one sentence.
    __str__ = Exception.__str__


class CaseError(RfssError, ValueError):
    """One case is unusable; it is quarantined under ``reason`` and the run goes on.

    Args:
        message: what is wrong, with the value, and what to do about it.
        reason: slug such as ``truncated``; overrides the class's default.
    """

    reason = "bad_case"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason  # type: ignore[misc]

    def __reduce__(self) -> tuple[object, ...]:
        """Keep ``reason`` when a worker process pickles the error."""
        return (_rebuild_case_error, (type(self), str(self), self.reason))


def _rebuild_case_error(kind: type[CaseError], message: str, reason: str) -> CaseError:
    return kind(message, reason=reason)


class UnreadableImageError(CaseError):
    """The file is truncated, corrupt or not what its name says."""

    reason = "unreadable"


class GeometryError(CaseError):
    """Shapes, affines or spacings that contradict each other or are not supported."""

    reason = "bad_geometry"


class PixelError(CaseError):
    """Voxel values that cannot be used: NaN, infinities, a constant image."""

    reason = "bad_pixels"


class LabelError(CaseError):
    """A label map that cannot be used with its image."""

    reason = "bad_label"


class StaleReviewError(CaseError):
    """A reviewed label map whose image has changed since."""

    reason = "stale_review"


class UnsafePathError(CaseError, PermissionError):
    """A path that leaves the folder it was found in."""

    reason = "unsafe_path"

    __str__ = Exception.__str__


class DownloadError(InputError, ConnectionError):
    """A public data set cannot be fetched, or what came is not what was asked for."""

    reason = "download"

    # OSError's __str__ rearranges its arguments; ours is one sentence.
    __str__ = Exception.__str__


class LayoutError(InputError):
    """A public data set's folder that is not laid out as its publisher ships it; each problem is named."""

    reason = "bad_layout"


class TooManyQuarantinedError(InputError):
    """More of the input is unusable than ``max_quarantined_fraction`` allows."""

    reason = "too_many_quarantined"


class SettingsError(InputError):
    """Settings that contradict each other or the data."""

    reason = "bad_settings"


class LeakError(InputError):
    """Test patients, or copies of their images, among those that serve or train what is measured on them."""


class UnknownDatasetError(InputError, LookupError):
    """A name, version or alias that the registry of data sets does not hold."""

    reason = "unknown_dataset"


class RegistryError(RfssError, ConnectionError):
    """The registry of data sets does not answer."""

    reason = "registry"

    # OSError's __str__ rearranges its arguments; ours is one sentence.
    __str__ = Exception.__str__


class RegistryAccessError(InputError, PermissionError):
    """The registry of data sets refuses the credentials."""

    reason = "registry_access"

    __str__ = Exception.__str__


class ServerAccessError(InputError, PermissionError):
    """A Prefect server that refuses the credentials."""

    reason = "server_access"

    __str__ = Exception.__str__


class ReviewError(InputError):
    """Reviewed label maps that cannot be taken back; each is named."""

    reason = "bad_review"


class StoreError(RfssError, OSError):
    """The workspace cannot be read or written."""

    reason = "store"

    __str__ = Exception.__str__


class StoreAccessError(StoreError, InputError, PermissionError):
    """An object store that refuses the credentials or has no such bucket."""

    reason = "store_access"

    __str__ = Exception.__str__


class WorkspaceBusyError(StoreError, BlockingIOError):
    """Another run holds the workspace."""

    reason = "workspace_busy"

    # OSError's __str__ rearranges its arguments; ours is one sentence.
    __str__ = Exception.__str__


class WorkspaceLostError(StoreError, ConnectionAbortedError):
    """Another run took the workspace from this one, which had given no sign of life."""

    reason = "workspace_lost"

    __str__ = Exception.__str__


class StorageFullError(StoreError):
    """No space is left where the workspace lives."""

    reason = "storage_full"


class CorruptStoreError(StoreError):
    """Stored bytes do not match their recorded sha256."""

    reason = "corrupt_store"


class CorruptIndexError(CorruptStoreError, ValueError):
    """A file of a stored index is truncated, swapped, or of another generation."""

    reason = "corrupt_index"


class IndexNotFoundError(StoreError, FileNotFoundError):
    """No published index, or one of its files is missing."""

    reason = "index_not_found"

    __str__ = Exception.__str__


class ModelError(RfssError, ValueError):
    """Weights or a configuration that cannot be used."""

    reason = "bad_model"


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model at this hub id, revision or folder."""

    reason = "model_not_found"

    __str__ = Exception.__str__


class SupportError(RfssError, ValueError):
    """A support set that cannot serve the query: empty, too small, without the class."""

    reason = "bad_support"


class TooFewSupportsError(SupportError, LookupError):
    """Fewer support slices than asked for are left where a query's filter holds."""

    reason = "too_few_supports"


class ExecutionError(RfssError, RuntimeError):
    """Chunks failed for good; the run can be resumed after the cause is mended."""

    reason = "execution"


class PortTakenError(InputError, OSError):
    """A server cannot listen, because something else does."""

    reason = "port_taken"

    __str__ = Exception.__str__


class NoDeviceError(ExecutionError):
    """The executor needs a GPU, and this machine has none that torch can use."""

    reason = "no_device"


class WorkerDiedError(ExecutionError):
    """A worker process ended each time that it had this piece of work for itself."""

    reason = "killed_worker"


class ShortOfMemoryError(ExecutionError, MemoryError):
    """The smallest batch, one slice, does not fit into memory."""

    reason = "out_of_memory"


class GateError(RfssError, RuntimeError):
    """The data set's quality gate failed; everything is recorded, nothing promoted."""

    reason = "gate_failed"


class RecallWarning(RfssError, UserWarning):  # noqa: N818 - it is one
    """An approximate index that finds, or may find, fewer of the true neighbours than was asked for."""

    reason = "low_recall"

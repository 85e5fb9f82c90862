"""The Zarr workspace: images, label maps, stage outputs, chunk plan, completion records."""

from rfss_core.store.chunks import Chunk, plan_chunks
from rfss_core.store.files import Files
from rfss_core.store.images import StoredCase
from rfss_core.store.manifest import CaseRow, Manifest, slice_id
from rfss_core.store.records import Record
from rfss_core.store.reviews import Review, Reviews
from rfss_core.store.stages import StageStore
from rfss_core.store.workspace import Workspace

__all__ = [
    "CaseRow",
    "Chunk",
    "Files",
    "Manifest",
    "Record",
    "Review",
    "Reviews",
    "StageStore",
    "StoredCase",
    "Workspace",
    "plan_chunks",
    "slice_id",
]

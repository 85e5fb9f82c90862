"""Memories in the workspace: one small Zarr array a memory, named by its content address."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import zarr

from rfss_core.digest import digest_bytes
from rfss_core.errors import StoreError
from rfss_core.segmentation.memory import Memory
from rfss_core.store.files import Files

_KEY = re.compile(r"[0-9a-f]{64}")
_FORMAT = 2


class ZarrMemoryStore:
    """Keeps memories under ``<url>/<two digits>/<key>``, one array of raw bytes each, with their sha256.

    Chunks and runs may share it without locks: a key names its content, and a memory whose bytes do not match their
    recorded sha256 (half written, damaged, or two writers' halves) counts as absent and is encoded again.

    Args:
        url: folder, or an fsspec URL such as ``s3://bucket/prefix/memories``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._files = Files(self.url)

    def get(self, key: str) -> Memory | None:
        """Return a stored memory, or None where there is none that can be trusted."""
        path = self._path(key)
        try:
            array: Any = zarr.open_array(self._files.zarr_store(path, read_only=True), mode="r")
            if array.attrs.get("format") != _FORMAT:
                return None
            data = np.asarray(array[:])
            tokens, width, pointer = (int(array.attrs[name]) for name in ("tokens", "width", "pointer"))
            expected = array.attrs["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        lengths = [tokens * width * 2, pointer * 4, tokens]
        # The digest also unmasks a chunk that was never written: Zarr reads it as zeros.
        if len(data) != sum(lengths) or digest_bytes(data.tobytes()) != expected:
            return None
        first, second, third = torch.split(torch.from_numpy(data), lengths)
        return Memory(
            first.clone().view(torch.bfloat16).reshape(tokens, width),
            second.clone().view(torch.float32),
            third.clone().view(torch.bool),
        )

    def put(self, key: str, memory: Memory) -> None:
        """Keep a memory.

        Raises:
            StorageFullError: no space is left.
            StoreError: it cannot be written for another reason.
        """
        parts = (memory.spatial, memory.pointer, memory.foreground)
        data = np.concatenate([part.contiguous().view(torch.uint8).flatten().numpy() for part in parts])
        attributes: dict[str, Any] = {
            "format": _FORMAT,
            "sha256": digest_bytes(data.tobytes()),
            "tokens": memory.spatial.shape[0],
            "width": memory.spatial.shape[1],
            "pointer": memory.pointer.shape[0],
        }
        path = self._path(key)
        with self._files.writing(path):
            try:
                array = self._matching(path, attributes)
                if array is None:
                    try:
                        array = self._create(path, len(data), attributes, overwrite=False)
                    except ValueError:
                        # Something is there: another writer's array of this moment, or a damaged one.
                        array = self._matching(path, attributes) or self._create(
                            path, len(data), attributes, overwrite=True
                        )
                array[:] = data
            except (FileNotFoundError, FileExistsError):
                # Another writer of this key replaces the array under our hands: theirs serves as well.
                return

    def _create(self, path: str, length: int, attributes: dict[str, Any], *, overwrite: bool) -> Any:
        # bfloat16 noise does not compress.
        return zarr.create_array(
            self._files.zarr_store(path, read_only=False),
            shape=(length,),
            chunks=(length,),
            dtype="uint8",
            compressors=None,
            attributes=attributes,
            overwrite=overwrite,
        )

    def _matching(self, path: str, attributes: dict[str, Any]) -> Any:
        # An array that another writer of the same memory began is filled, not replaced: that would be a race.
        try:
            array: Any = zarr.open_array(self._files.zarr_store(path, read_only=False), mode="r+")
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return array if dict(array.attrs) == attributes else None

    @staticmethod
    def _path(key: str) -> str:
        if _KEY.fullmatch(key) is None:
            raise StoreError(f"'{key}' is no address of a memory (64 hexadecimal digits)")
        return f"{key[:2]}/{key}"

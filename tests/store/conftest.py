"""Roots of every kind that a workspace can live under."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest


@pytest.fixture(params=["folder", "file-url", "memory"])
def root_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty root: a folder, the same by its URL, and an object store."""
    if request.param == "folder":
        yield str(tmp_path / "workspace")
    elif request.param == "file-url":
        yield f"file://{tmp_path}/workspace"
    else:
        url = f"memory://rfss-{uuid.uuid4().hex}"
        yield url
        memory = fsspec.filesystem("memory")
        if memory.exists(url):
            memory.rm(url, recursive=True)

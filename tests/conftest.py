"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks  # noqa: F401 - sets the environment's defaults before Prefect is imported

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real labelled images, or a skip that says how to get them."""
    folder = Path(os.environ.get("RFSS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set RFSS_DATA to a folder that holds acdc/, hippocampus/, ...")
    return folder


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Address of a real Prefect server with a database of its own; flows of this process report to it."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield str(get_current_settings().api.url)

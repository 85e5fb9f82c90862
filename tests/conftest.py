"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import FlakyProxy, s3_server, use_s3

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


@pytest.fixture(scope="session")
def _s3_proxy() -> Iterator[FlakyProxy]:
    # One address for the whole session: clients of S3 are kept for reuse with the address that they began with.
    with s3_server() as port, FlakyProxy(port) as proxy, pytest.MonkeyPatch.context() as patch:
        use_s3(patch, proxy.port)
        yield proxy


@pytest.fixture
def proxy(_s3_proxy: FlakyProxy) -> Iterator[FlakyProxy]:
    """A real S3-compatible server behind a proxy that fails when told to; the environment points at it."""
    _s3_proxy.reset()
    yield _s3_proxy
    _s3_proxy.reset()

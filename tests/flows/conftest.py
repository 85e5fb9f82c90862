"""A real Prefect server for the whole session, and a cohort that runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import write_cohort

import tasks  # noqa: F401 - sets the environment's defaults before Prefect is imported


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=16, labelled=12)

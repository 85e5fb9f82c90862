"""The Prefect server of the session for every test here, and a cohort that runs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from cohorts import write_cohort


@pytest.fixture(scope="session", autouse=True)
def _prefect(prefect_server: str) -> None:
    """Flows of this folder report to the session's server."""


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=16, labelled=12)

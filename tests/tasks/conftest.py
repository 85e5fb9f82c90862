"""A registered data set that tests share; they must not change it."""

from __future__ import annotations

import pytest
from published import Published, publish_dataset, record_of

from rfss_core.store.files import Files
from tasks.dataset_run import register_dataset

USERS_OWN = ("MLFLOW_TRACKING_URI", "RFSS_WORKSPACE", "MLFLOW_RUN_ID")
"""What a developer may have set, and what no test may look at."""


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No registry but the one that a test names."""
    for variable in USERS_OWN:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Data set ``hearts``, version 1, in the sqlite store of its workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        published = publish_dataset(tmp_path_factory.mktemp("registered"))
        register_dataset(record_of(published), Files(published.workspace))
    return published

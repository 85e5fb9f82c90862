"""The cohort that the killed runs label: several chunks a stage, and little work in each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed import STARTED, survivors

from rfss_core.phantom.cohort import write_cohort
from rfss_core.phantom.generator import PhantomSettings

SCANS = PhantomSettings(rows=48, columns=48, slices=5, pixel_mm=4.0)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    # Of the first seeds the one whose case ids cut embedding into four chunks and segmentation into three.
    write_cohort(folder, patients=10, seed=10, labelled=6, settings=SCANS)
    (folder / "settings.yaml").write_text(
        "held_out: 0.5\nk: 3\ndataset: disturbed\nquality: {min_dice: 0, bootstrap: 200}\nexecution: {workers: 2}\n"
    )
    return folder


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test that failed has left running."""
    yield
    survivors([process for process in STARTED if process.poll() is None], 0)
    STARTED.clear()

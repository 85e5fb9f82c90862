"""Label files of a published data set: how one case's file is made."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rfss_core.imaging import SourceGrid, write_label


def encoded(labels: npt.NDArray[np.uint8], grid: SourceGrid) -> bytes:
    """Return the label file of a case on its source's grid.

    Args:
        labels: label map [Z, H, W].
        grid: the source's.
    """
    with tempfile.TemporaryDirectory(prefix="rfss-") as folder:
        path = Path(folder) / f"labels{grid.suffix}"
        write_label(labels, grid, path)
        return path.read_bytes()

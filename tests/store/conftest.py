"""Roots of every kind that a workspace can live under."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest

from rfss_core.digest import digest_json
from rfss_core.imaging import CaseSource, IntensityWindow, NiftiGeometry, Volume
from rfss_core.imaging.grid import affine_grid, raster_grid


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


@dataclass
class Sample:
    """One case with all that :meth:`Workspace.write_case` wants."""

    case: CaseSource
    volume: Volume
    window: IntensityWindow
    label: np.ndarray | None
    source_digest: str

    @property
    def arguments(self) -> tuple[CaseSource, Volume, IntensityWindow, np.ndarray | None, str]:
        """Positional arguments of ``write_case``."""
        return self.case, self.volume, self.window, self.label, self.source_digest


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """Factory of small cases that are determined by their number."""

    def make(
        number: int = 0,
        *,
        dtype: str = "int16",
        shape: tuple[int, ...] = (5, 12, 9),
        labelled: bool = True,
        kind: str = "nifti",
    ) -> Sample:
        draw = np.random.default_rng(number)
        pixels = (draw.random(shape) * 200).astype(dtype)
        label = draw.integers(0, 4, shape[:3]).astype(np.uint8) if labelled else None
        if kind == "raster":
            grid = raster_grid(shape[1:3] if shape[0] == 1 else shape[:3], ".png")
        else:
            z, height, width = shape[:3]
            affine = np.array([[-0.7, 0.1, 0, 5], [0.1, -0.7, 0, 6], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
            geometry = NiftiGeometry(
                version=1,
                pixdim=(1, 0.7, 0.7, 2.5, 0, 0, 0, 0),
                qform_code=1,
                sform_code=2,
                quatern=(0.1, 0.2, 0.3),
                qoffset=(5, 6, 7),
                srow=tuple(tuple(row) for row in affine[:3]),
                xyzt_units=2,
            )
            grid = affine_grid("x.nii.gz", "nifti", (width, height, z), affine, geometry, 2)
        case = CaseSource(
            case_id=f"case-{number:03d}",
            name=f"folder/case {number}",
            patient=f"p{number // 2}",
            modality="MR",
            kind=kind,
            image=Path(f"images/case {number}.nii.gz"),
            label=Path(f"labels/case {number}.nii.gz") if labelled else None,
        )
        window = IntensityWindow(10.0, 150.0) if dtype != "bool" else IntensityWindow(0.0, 1.0)
        return Sample(case, Volume(pixels, grid, grid.spacing), window, label, digest_json([number, dtype]))

    return make

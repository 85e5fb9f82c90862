"""OME-Zarr 0.5: one image group a case with its label map below, as napari's reader opens them.

https://ngff.openmicroscopy.org/specifications/0.5/. OME-Zarr knows scales but no affine: attribute ``rfss`` of each
group holds the source's grid, so that a label map finds its way back.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.exporter import CaseFiles, WrittenCase
from rfss_core.datasets.viewers import class_palette
from rfss_core.settings import ExportSettings
from rfss_core.store.durable import make_folders
from rfss_core.store.files import Files

_CHUNK = 512
"""Pixels of a chunk's sides at most."""
_SMALLEST = 128
"""Levels are halved in the plane while the longer side is above this."""


class OmeZarrExporter:
    """Writes images and label maps in canonical orientation, [z, y, x] or [c, z, y, x]."""

    def __init__(self, settings: ExportSettings) -> None:
        del settings
        self._classes: dict[int, str] = {}

    def target(self, out: Path, content: ExportSet) -> Path:
        """Return ``out``."""
        del content
        return out

    def plan(self, content: ExportSet) -> Mapping[str, Any]:
        """Accept every set."""
        self._classes = content.classes
        return {"ome_zarr": "0.5"}

    def write_case(self, case: ExportCase, folder: Path) -> CaseFiles:
        """Write ``<case id>.ome.zarr``."""
        write_image, write_labels = _writers()
        path = f"{case.id}.ome.zarr"
        place = folder / path
        # What an interrupted try left may hold chunks that this one does not write.
        shutil.rmtree(place, ignore_errors=True)
        make_folders(place.parent)
        grid = case.grid
        unit = None if grid.nifti is None else "millimeter"
        scale = dict(zip("zyx", grid.spacing, strict=True))
        group = zarr.open_group(str(place), mode="w", zarr_format=3)
        pixels = case.stored.read_raw()
        if pixels.ndim == 4:
            write_image(_first(pixels), group, name=case.name, **_options(pixels.shape[1:3], "czyx", scale, unit))
        else:
            write_image(pixels, group, name=case.name, **_options(pixels.shape[1:3], "zyx", scale, unit))
        labels = case.read_labels()
        write_labels(
            labels,
            group,
            name=case.label_source,
            label_metadata=self._about_labels(),
            scaler=None,
            **_options(labels.shape[1:3], "zyx", scale, unit),
        )
        about: dict[str, Any] = {
            "case": case.id,
            "name": case.name,
            "affine": [list(row) for row in grid.affine],
            "grid": grid.to_json(),
        }
        group.attrs["rfss"] = about
        group[f"labels/{case.label_source}"].attrs["rfss"] = {**about, "label_source": case.label_source}
        Files(place).sync_tree(".")
        return CaseFiles((path,), {"image": path, "label": f"{path}/labels/{case.label_source}"})

    def finish(self, written: Sequence[WrittenCase], content: ExportSet, folder: Path) -> None:
        """Write nothing: each group stands for itself."""
        del written, content, folder

    def _about_labels(self) -> dict[str, Any]:
        palette = class_palette(self._classes)
        return {
            "colors": [{"label-value": value, "rgba": [*palette[value], 255]} for value in sorted(self._classes)],
            "properties": [{"label-value": value, "class": name} for value, name in sorted(self._classes.items())],
            "source": {"image": "../../"},
        }


def _writers() -> tuple[Callable[..., Any], Callable[..., Any]]:
    with warnings.catch_warnings():
        # ome-zarr 0.18 uses, at its own import, what it deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        from ome_zarr.writer import write_image, write_labels
    return write_image, write_labels


def _first(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _options(plane: tuple[int, ...], axes: str, scale: dict[str, float], unit: str | None) -> dict[str, Any]:
    """Return what images and label maps of one case share in ``ome_zarr.writer``."""
    from ome_zarr.format import FormatV05

    longest = max(plane)
    factors: list[int] = []
    while longest > _SMALLEST:
        longest //= 2
        factors.append(2 ** (len(factors) + 1))
    return {
        "fmt": FormatV05(),
        "axes": list(axes),
        "scale": {axis: scale.get(axis, 1.0) for axis in axes},
        "axes_units": None if unit is None else dict.fromkeys("zyx", unit),
        "scale_factors": factors,
        # Viewers read slice by slice.
        "storage_options": {"chunks": (1,) * (len(axes) - 2) + tuple(min(side, _CHUNK) for side in plane)},
    }

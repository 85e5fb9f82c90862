"""Images of the workspace: one OME-Zarr 0.5 group a case.

The group ``images/<case_id>`` holds array ``0``, [z, y, x] or [c, z, y, x], one level, inner chunk one slice, and
where there is an expert's label map the group ``labels/expert`` with an array ``0`` [z, y, x]. OME-Zarr keeps scales
but no affine, so attribute ``rfss`` holds the source grid with its affine and codes
(https://ngff.openmicroscopy.org/specifications/0.5/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rfss_core.digest import digest_bytes
from rfss_core.errors import StoreError
from rfss_core.imaging import CaseSource, IntensityWindow, SourceGrid, Volume, normalise
from rfss_core.store.arrays import confirm_array, open_array, reading, write_array
from rfss_core.store.files import Files, safe_name

OME_VERSION = "0.5"
EXPERT = "expert"
"""Name of the label map that came with the image."""


@dataclass(frozen=True)
class WrittenImage:
    """What :func:`write_image` left in the workspace."""

    outputs: dict[str, str]
    """Path below the workspace -> sha256."""
    pixel_digest: str
    label_digest: str
    """Empty where there is no label map."""


def image_folder(case_id: str) -> str:
    """Return the folder of a case's image group, below the workspace."""
    return f"images/{safe_name(case_id, 'case id')}"


def write_image(
    files: Files,
    case: CaseSource,
    volume: Volume,
    window: IntensityWindow,
    label: npt.NDArray[np.uint8] | None,
    source_digest: str,
) -> WrittenImage:
    """Write one case's pixels, label map and metadata; the folder must not exist.

    Args:
        files: the workspace's files.
        case: where the volume comes from.
        volume: pixels [Z, H, W] or [Z, H, W, 3] of any number type; kept as they are.
        window: intensities that become 0 and 1 on reading.
        label: [Z, H, W], or None.
        source_digest: sha256 over the source's files.

    Raises:
        ValueError: shapes that do not belong together.
        StorageFullError: no space is left.
        CorruptStoreError: what was read back is not what was written.
    """
    pixels = volume.pixels
    if pixels.ndim not in (3, 4):
        raise ValueError(f"pixels of case '{case.case_id}' must be [Z, H, W] or [Z, H, W, C], got {pixels.shape}")
    if label is not None and (label.shape != pixels.shape[:3] or label.dtype != np.uint8):
        raise ValueError(
            f"label of case '{case.case_id}' is {label.dtype} {label.shape}, but must be uint8 {pixels.shape[:3]}"
        )
    folder = image_folder(case.case_id)
    colour = pixels.ndim == 4
    stored = np.moveaxis(pixels, -1, 0) if colour else pixels
    height, width = (max(1, size) for size in pixels.shape[1:3])
    inner = (1, height, width)
    axes = ("c", "z", "y", "x") if colour else ("z", "y", "x")
    files.make_folder(folder)
    pixel_digest = write_array(
        files,
        f"{folder}/0",
        stored,
        inner=(stored.shape[0], *inner) if colour else inner,
        shard_axis=1 if colour else 0,
        names=axes,
        separator="/",
    )
    arrays = {f"{folder}/0": pixel_digest}
    groups: dict[str, dict[str, Any]] = {}
    label_digest = ""
    if label is not None:
        labels = f"{folder}/labels"
        path = f"{labels}/{EXPERT}/0"
        label_digest = write_array(files, path, label, inner=inner, names=("z", "y", "x"), separator="/")
        arrays[path] = label_digest
        image_label = {
            "colors": [{"label-value": value, "rgba": _rgba(value)} for value in _classes(label)],
            "source": {"image": "../../"},
        }
        multiscales = _multiscales(EXPERT, ("z", "y", "x"), volume.spacing)
        groups[f"{labels}/{EXPERT}"] = {"ome": _ome(multiscales=multiscales) | {"image-label": image_label}}
        groups[labels] = {"ome": _ome(labels=[EXPERT])}
    grid = volume.grid
    # Last, so that a torn case does not even look like an image group.
    groups[folder] = {
        "ome": _ome(multiscales=_multiscales(case.name, axes, volume.spacing)),
        "rfss": {
            "case_id": case.case_id,
            "name": case.name,
            "patient": case.patient,
            "modality": case.modality,
            "kind": case.kind,
            "source_digest": source_digest,
            "spacing": [float(size) for size in volume.spacing],
            "window": [float(window.low), float(window.high)],
            "affine": [list(row) for row in grid.affine],
            "codes": None if grid.nifti is None else {"qform": grid.nifti.qform_code, "sform": grid.nifti.sform_code},
            "grid": grid.to_json(),
        },
    }
    for path, attributes in groups.items():
        with files.writing(path):
            zarr.create_group(files.zarr_store(path, read_only=False), attributes=attributes)
    files.sync_tree(folder)
    for path, digest in arrays.items():
        confirm_array(files, path, digest)
    metadata = {f"{path}/zarr.json": digest_bytes(files.read_bytes(f"{path}/zarr.json")) for path in groups}
    return WrittenImage(arrays | metadata, pixel_digest, label_digest)


class StoredCase:
    """One case of the workspace, read lazily. Cheap to make; pickles as its address.

    Args:
        files: the workspace's files.
        case_id: the case's id.

    Raises:
        StoreError: on first use, when the workspace has no such case.
        CorruptStoreError: on first use, when stored bytes are damaged.
    """

    def __init__(self, files: Files, case_id: str) -> None:
        self.files = files
        self.case_id = case_id
        self.folder = image_folder(case_id)

    def __repr__(self) -> str:
        return f"StoredCase({self.files.url!r}, {self.case_id!r})"

    def __reduce__(self) -> tuple[type[StoredCase], tuple[Files, str]]:
        return (StoredCase, (self.files, self.case_id))

    @property
    def name(self) -> str:
        """Relative path of the source without its extension."""
        return str(self._attributes["name"])

    @property
    def patient(self) -> str:
        """The patient's id."""
        return str(self._attributes["patient"])

    @property
    def modality(self) -> str:
        """The modality, as the source or its folder says."""
        return str(self._attributes["modality"])

    @property
    def source_digest(self) -> str:
        """sha256 over the source's files."""
        return str(self._attributes["source_digest"])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm."""
        z, y, x = self._attributes["spacing"]
        return float(z), float(y), float(x)

    @property
    def window(self) -> IntensityWindow:
        """Intensities that become 0 and 1."""
        low, high = self._attributes["window"]
        return IntensityWindow(low, high)

    @cached_property
    def grid(self) -> SourceGrid:
        """All that is needed to write a label map on the source's own grid."""
        return SourceGrid.from_json(self._attributes["grid"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, H, W)."""
        z, height, width = self._pixels.shape[-3:]
        return int(z), int(height), int(width)

    @property
    def in_colour(self) -> bool:
        """Whether the image has three colours."""
        return self._pixels.ndim == 4

    @property
    def n_slices(self) -> int:
        """Number of slices, Z."""
        return self.shape[0]

    @property
    def labelled(self) -> bool:
        """Whether an expert's label map is stored."""
        return self.files.exists(f"{self.folder}/labels/{EXPERT}/0/zarr.json")

    def read_raw(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Return slices as the source holds them, [n, H, W] or [n, H, W, 3], in the source's dtype."""
        array = self._pixels
        with reading(self.files, self.folder):
            if array.ndim == 4:
                return np.moveaxis(np.asarray(array[:, start:stop]), 0, -1)
            return np.asarray(array[start:stop])

    def read_slices(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Return slices normalised with the volume's window: float32 in [0, 1], [n, H, W] or [n, H, W, 3]."""
        return normalise(self.read_raw(start, stop), self.window)

    def read_labels(self, start: int = 0, stop: int | None = None, name: str = EXPERT) -> npt.NDArray[np.uint8]:
        """Return the label map of slices, uint8 [n, H, W].

        Raises:
            StoreError: the case has no label map of this name.
        """
        path = f"{self.folder}/labels/{safe_name(name, 'label map')}/0"
        array = self._labels.get(name)
        if array is None:
            array = self._labels[name] = open_array(self.files, path)
        with reading(self.files, path):
            return np.asarray(array[start:stop])

    @cached_property
    def _labels(self) -> dict[str, zarr.Array[Any]]:
        return {}

    @cached_property
    def _pixels(self) -> zarr.Array[Any]:
        # The group is written last: without it the case is missing or torn.
        _ = self._attributes
        return open_array(self.files, f"{self.folder}/0")

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        try:
            with reading(self.files, self.folder):
                group = zarr.open_group(self.files.zarr_store(self.folder, read_only=True), mode="r")
                return dict(group.attrs["rfss"])  # type: ignore[arg-type]
        except FileNotFoundError as error:
            raise StoreError(f"workspace '{self.files.url}' has no case '{self.case_id}'; ingest it first") from error


def _ome(**content: Any) -> dict[str, Any]:
    return {"version": OME_VERSION, **content}


def _multiscales(name: str, axes: tuple[str, ...], spacing: tuple[float, float, float]) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = [
        {"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space", "unit": "millimeter"}
        for axis in axes
    ]
    sizes = [float(size) if math.isfinite(size) and size > 0 else 1.0 for size in spacing]
    scale = [1.0] * (len(axes) - 3) + sizes
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    return [{"name": name, "axes": described, "datasets": datasets}]


def _classes(label: npt.NDArray[np.uint8]) -> list[int]:
    counts = np.bincount(label.ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts) if value > 0]


_PALETTE = ((230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230))


def _rgba(value: int) -> list[int]:
    return [*_PALETTE[(value - 1) % len(_PALETTE)], 255]

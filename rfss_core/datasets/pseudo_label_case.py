"""One case of a loaded data set: image, pseudo-label and what is known about both, read when asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.datasets.ignore import check_level, ignore_value, ignored
from rfss_core.datasets.manifest import DatasetEntry
from rfss_core.datasets.origin import Origin
from rfss_core.digest import digest_bytes
from rfss_core.errors import CorruptStoreError, InputError, InputNotFoundError, StoreError
from rfss_core.imaging import CaseSource, SourceGrid, estimate_window, normalise, read_image, read_label, source_digest
from rfss_core.imaging.grid import affine_grid
from rfss_core.imaging.nifti import read_nifti
from rfss_core.imaging.raster import read_raster
from rfss_core.quality.decision import Decision
from rfss_core.store.files import Files
from rfss_core.store.images import StoredCase


@dataclass(frozen=True)
class PseudoLabelCase:
    """One case of a :class:`PseudoLabelSet`. Picklable; opens nothing until it is asked.

    Arrays are in canonical orientation (docs/architecture.md): [Z, H, W], colours last.
    """

    entry: DatasetEntry
    """Its line of the manifest."""
    weight: float
    """Confidence, 0 to 1: see :meth:`PseudoLabelSet.weight`."""
    origin: Origin
    """Where its image and uncertainty come from."""

    @property
    def id(self) -> str:
        """The case's id."""
        return self.entry.case

    @property
    def name(self) -> str:
        """Relative path of the source without its extension."""
        return self.entry.name

    @property
    def patient(self) -> str:
        """The patient's id."""
        return self.entry.patient

    @property
    def decision(self) -> Decision:
        """``accept``, ``review`` or ``reject``."""
        return self.entry.decision

    @property
    def predicted_dice(self) -> float | None:
        """Predicted Dice, 0 to 1; None where there is no prediction."""
        return self.entry.predicted_dice

    @property
    def lower(self) -> float | None:
        """Lower bound on Dice; None where there is no prediction."""
        return self.entry.lower

    @property
    def n_slices(self) -> int:
        """Number of slices, Z."""
        return self.entry.slices

    @cached_property
    def stored(self) -> StoredCase | None:
        """The case as the data set's workspace holds it; None where the workspace is out of reach.

        Raises:
            CorruptStoreError: the workspace holds another image by now.
        """
        return None if self.origin.images is not None else self.origin.stored(self.entry)

    @property
    def source(self) -> CaseSource | None:
        """The files that the image came from; None where they are out of reach."""
        return self.origin.sources.get(self.entry.case)

    @cached_property
    def grid(self) -> SourceGrid:
        """The source's grid: shape, affine, orientation; what a label map is written on."""
        return self.stored.grid if self.stored is not None else self._read_label_file()[1]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm; 1.0 where the source tells none."""
        return self.grid.spacing

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, H, W)."""
        return self.grid.canonical_shape

    def image(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Return slices normalised with the volume's window: float32 in [0, 1], [n, H, W] or [n, H, W, 3].

        Args:
            start: first slice.
            stop: slice after the last; default: all.

        Raises:
            InputNotFoundError: neither the workspace nor the source's files are within reach.
            CorruptStoreError: the image is not the one that was labelled.
        """
        if self.stored is not None:
            return self.stored.read_slices(start, stop)
        pixels = self._read_source()
        return normalise(pixels[start:stop], estimate_window(pixels, self.origin.settings))

    def raw(self) -> npt.NDArray[Any]:
        """Return the image as the source holds it, [Z, H, W] or [Z, H, W, 3], in the source's dtype."""
        return self.stored.read_raw() if self.stored is not None else self._read_source()

    def label(self, ignore: float | None = None) -> npt.NDArray[np.uint8]:
        """Return the pseudo-label, uint8 [Z, H, W]: 0 background, class values as in the source.

        Args:
            ignore: voxels of at least this uncertainty (above 0 to 1) become :attr:`PseudoLabelSet.ignore_value`.

        Raises:
            CorruptStoreError: the file has changed or vanished.
            InputError: ``ignore`` is out of bounds, or no uncertainty is stored.
        """
        labels = self._read_label()
        if ignore is None:
            return labels
        check_level(ignore)
        uncertainty = self.uncertainty()
        if uncertainty is None:
            raise InputError(
                f"no uncertainty is stored for case '{self.name}' within reach of '{self.origin.manifest.folder}'; "
                "load the data set from its workspace, or go on without ignore"
            )
        labels[ignored(uncertainty, ignore)] = ignore_value(self.origin.manifest.classes)
        return labels

    def label_bytes(self) -> bytes:
        """Return the bytes of the pseudo-label's file, on the source's own grid.

        Raises:
            CorruptStoreError: the file has changed or vanished.
        """
        files, path = Files(self.origin.manifest.folder), self.entry.label_path
        try:
            data = files.read_bytes(path)
        except StoreError as error:
            raise CorruptStoreError(
                f"pseudo-label '{path}' of data set '{self.origin.manifest.name}' cannot be read: {error}; restore it"
            ) from error
        if digest_bytes(data) != self.entry.sha256:
            raise CorruptStoreError(
                f"pseudo-label '{path}' of data set '{self.origin.manifest.name}' is not what was registered; restore "
                "it"
            )
        return data

    def uncertainty(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8] | None:
        """Return how unsure the segmenter was, uint8 [n, H, W], 0 (sure) to 255; None where it is not stored."""
        found = self.origin.uncertainty(self.entry)
        return None if found is None else found.read(start, stop)

    def _read_label(self) -> npt.NDArray[np.uint8]:
        if self.stored is None:
            return self._read_label_file()[0]
        with tempfile.TemporaryDirectory(prefix="rfss-") as folder:
            path = self._label_copy(Path(folder))
            return read_label(self._source_of(path), self.stored.grid, self.origin.settings, exact=True)

    def _read_label_file(self) -> tuple[npt.NDArray[np.uint8], SourceGrid]:
        """Return the label map and its grid, from its own file alone."""
        settings = self.origin.settings
        with tempfile.TemporaryDirectory(prefix="rfss-") as folder:
            path = self._label_copy(Path(folder))
            if path.name.endswith(".nii.gz"):
                nifti = read_nifti(path, settings)
                grid = affine_grid(
                    path.name, "nifti", nifti.pixels.shape, nifti.affine, nifti.geometry, settings.slice_axis
                )
            else:
                grid = read_raster(path, settings)[1]
            return read_label(self._source_of(path), grid, settings, exact=True), grid

    def _label_copy(self, folder: Path) -> Path:
        path = folder / self.entry.label_path.rsplit("/", 1)[-1]
        path.write_bytes(self.label_bytes())
        return path

    def _source_of(self, label: Path) -> CaseSource:
        return CaseSource(self.id, self.name, self.patient, "unknown", "nifti", label, label)

    def _read_source(self) -> npt.NDArray[Any]:
        source = self.source
        if source is None:
            raise InputNotFoundError(
                f"the image of case '{self.name}' is out of reach: data set '{self.origin.manifest.folder}' lies in no "
                "workspace; load it with images= naming the folder of the source images"
            )
        if source_digest(source) != self.entry.source_digest:
            raise CorruptStoreError(
                f"image '{self.name}' in '{self.origin.image_pattern}' is not the one that was labelled; restore it"
            )
        return read_image(source, self.origin.settings).pixels

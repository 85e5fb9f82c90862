"""A case that an expert labelled, as training and measurement read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from rfss_core.digest import digest_array
from rfss_core.imaging import CaseSource, estimate_window, normalise, read_image, read_label, source_digest
from rfss_core.settings import ImagingSettings
from rfss_core.store.images import StoredCase


@dataclass(frozen=True)
class ExpertCase:
    """A case that an expert labelled: as the workspace holds it, or as files."""

    id: str
    patient: str
    digest: str
    """sha256 over image and label."""
    pixels: str
    """sha256 of the image's pixels as :func:`rfss_core.digest.digest_array` takes it."""
    stored: StoredCase | None = None
    source: CaseSource | None = None
    settings: ImagingSettings | None = None

    @classmethod
    def of(cls, source: CaseSource, settings: ImagingSettings) -> Self:
        """Return the case that lies in files.

        Raises:
            CaseError: they cannot be read.
        """
        pixels = digest_array(read_image(source, settings).pixels)
        return cls(source.case_id, source.patient, source_digest(source), pixels, source=source, settings=settings)

    @cached_property
    def _read(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], tuple[float, float, float]]:
        assert self.source is not None
        assert self.settings is not None
        volume = read_image(self.source, self.settings)
        pixels = normalise(volume.pixels, estimate_window(volume.pixels, self.settings))
        return pixels, read_label(self.source, volume.grid, self.settings), volume.spacing

    @property
    def n_slices(self) -> int:
        """Number of slices, Z."""
        return self.stored.n_slices if self.stored is not None else len(self._read[1])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm."""
        return self.stored.spacing if self.stored is not None else self._read[2]

    def image(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Return slices, float32 in [0, 1], [n, H, W] or [n, H, W, 3]."""
        return self.stored.read_slices(start, stop) if self.stored is not None else self._read[0][start:stop]

    def label(self) -> npt.NDArray[np.uint8]:
        """Return the expert's label map, uint8 [Z, H, W]."""
        return self.stored.read_labels() if self.stored is not None else self._read[1]

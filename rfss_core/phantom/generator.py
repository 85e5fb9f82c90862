"""Phantom: an anatomy in a scanner, in both cardiac phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.spatial.transform import Rotation

from rfss_core.phantom.anatomy import PHASES, Anatomy, Phase
from rfss_core.phantom.scanner import Scanner

CLASSES: dict[int, str] = {1: "RV", 2: "Myo", 3: "LV"}
"""Names of the label values, in the ACDC challenge's numbering."""

_FINE = 2
_THICKNESS = 0.8
_BAND = 32


class PhantomSettings(BaseModel):
    """Geometry of the scans."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(128, ge=32, le=1024, description="Pixels from anterior to posterior.")
    columns: int = Field(128, ge=32, le=1024, description="Pixels from right to left.")
    slices: int = Field(8, ge=3, le=64, description="Slices from base to apex.")
    pixel_mm: float = Field(1.5, gt=0, description="Pixel size in mm.")
    step_mm: float = Field(10.0, gt=0, description="Distance between slices in mm; four fifths of it are excited.")


@dataclass(frozen=True)
class Acquisition:
    """One scan of a phantom.

    Attributes:
        pixels: int16 [Z, H, W], base first, row grows to posterior, column to the patient's left.
        labels: uint8 [Z, H, W]: 0 background, 1 RV, 2 Myo, 3 LV.
        spacing: (z, y, x) in mm.
        affine: float64 [4, 4], from (column, row, slice) to RAS mm as NIfTI has it, oblique.
    """

    pixels: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    spacing: tuple[float, float, float]
    affine: npt.NDArray[np.float64]


class Phantom:
    """A phantom; same seed and settings, same scans.

    Args:
        seed: entropy, as :class:`numpy.random.SeedSequence` takes it.
        settings: geometry of the scans.

    Attributes:
        anatomy: what is in the scanner.
        scanner: how it is seen.
        frames: number of the frame that shows each phase, as file names carry it.
    """

    def __init__(self, seed: int | Sequence[int], settings: PhantomSettings | None = None) -> None:
        self.settings = settings or PhantomSettings()
        body, scan, *self._phases = np.random.SeedSequence(seed).spawn(2 + len(PHASES))
        self.anatomy = Anatomy.draw(np.random.default_rng(body))
        random = np.random.default_rng(scan)
        self.scanner = Scanner.draw(random)
        self.frames: dict[Phase, int] = {"ED": 1, "ES": int(random.integers(8, 15))}
        self._shift = random.uniform(-10.0, 10.0, 2)
        self._turn = float(random.uniform(-0.2, 0.2))
        self._zoom = float(random.uniform(0.92, 1.08))
        self._first_depth = float(random.uniform(-4.0, 6.0))
        self._tilt = random.normal((20.0, 18.0, 12.0), (5.0, 5.0, 4.0))
        self._origin = random.normal((0.0, -20.0, 30.0), 25.0)

    def acquire(self, phase: Phase) -> Acquisition:
        """Return the scan of one phase."""
        settings = self.settings
        random = np.random.default_rng(self._phases[PHASES.index(phase)])
        x, y = self._points(1)
        fine_x, fine_y = self._points(_FINE)
        shape = (settings.slices, settings.rows, settings.columns)
        pixels, labels = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        for index in range(settings.slices):
            depth = self._first_depth + index * settings.step_mm / self._zoom
            labels[index] = self.anatomy.labels(x, y, depth, phase)
            # Two planes inside the excited slab: the partial volume that blurs the apex.
            slab = [depth + part * _THICKNESS * settings.step_mm / self._zoom for part in (-0.25, 0.25)]
            # Bands of rows keep the intermediate arrays in the processor's cache: several times faster.
            tissues = np.concatenate(
                [
                    self.anatomy.tissues(fine_x[row : row + _BAND], fine_y[row : row + _BAND], slab, phase)
                    for row in range(0, len(fine_x), _BAND)
                ],
                axis=1,
            )
            voxels = tissues.reshape(len(slab), settings.rows, _FINE, settings.columns, _FINE).transpose(1, 3, 0, 2, 4)
            pixels[index] = self.scanner.expose(voxels.reshape(settings.rows, settings.columns, -1), random)
        spacing = (settings.step_mm, settings.pixel_mm, settings.pixel_mm)
        return Acquisition(pixels, labels, spacing, self._affine())

    def _points(self, fine: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return x and y in mm of the anatomy's frame, [rows * fine, columns * fine]."""
        settings = self.settings
        step = settings.pixel_mm / fine
        rows = (np.arange(settings.rows * fine) + 0.5) * step - settings.rows * settings.pixel_mm / 2
        columns = (np.arange(settings.columns * fine) + 0.5) * step - settings.columns * settings.pixel_mm / 2
        y, x = np.meshgrid(rows - self._shift[1], columns - self._shift[0], indexing="ij")
        cos, sin = np.cos(self._turn) / self._zoom, np.sin(self._turn) / self._zoom
        return cos * x + sin * y, cos * y - sin * x

    def _affine(self) -> npt.NDArray[np.float64]:
        """Return an oblique affine: columns mostly to the left, rows to posterior, slices to inferior."""
        settings = self.settings
        # Axes of the unturned scan in RAS; the turns keep each axis nearest to where it starts.
        axes = np.diag([-1.0, -1.0, -1.0])
        turned = Rotation.from_euler("xyz", self._tilt, degrees=True).as_matrix() @ axes
        affine = np.eye(4)
        affine[:3, :3] = turned * np.array([settings.pixel_mm, settings.pixel_mm, settings.step_mm])
        centre = np.array([settings.columns - 1, settings.rows - 1, settings.slices - 1]) / 2
        affine[:3, 3] = self._origin - affine[:3, :3] @ centre
        return affine

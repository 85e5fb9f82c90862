"""Scanner of a phantom: from tissues to the magnitudes that a scan stores.

Contrast is that of balanced steady-state free precession, the usual cine sequence: blood and fat bright, muscle dark,
lung almost black. Noise is Rician: the magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, "The
Rician distribution of noisy MRI data", MRM 34:910, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rfss_core.phantom.anatomy import Tissue

Floats = npt.NDArray[np.float64]

_SIGNAL: dict[Tissue, tuple[float, float, float]] = {
    # Mean, its spread over phantoms, and the depth of the texture inside one.
    Tissue.AIR: (0.0, 0.0, 0.0),
    Tissue.FAT: (0.80, 0.08, 0.10),
    Tissue.MUSCLE: (0.26, 0.03, 0.15),
    Tissue.LUNG: (0.05, 0.02, 0.35),
    Tissue.MEDIASTINUM: (0.50, 0.08, 0.55),
    Tissue.LIVER: (0.36, 0.06, 0.14),
    Tissue.STOMACH: (0.42, 0.12, 0.40),
    Tissue.SPINE: (0.38, 0.06, 0.25),
    Tissue.MYOCARDIUM: (0.30, 0.04, 0.10),
    Tissue.BLOOD: (0.95, 0.06, 0.08),
}


@dataclass(frozen=True)
class Scanner:
    """One phantom's scan: contrast, gain, coil and noise; :meth:`draw` makes one."""

    signal: Floats
    """[tissues] mean signal."""
    texture: Floats
    """[tissues] relative depth of the texture."""
    gain: float
    """Stored value of full signal."""
    bias: Floats
    """[3, 3] coefficients of the log bias field's polynomial in y and x, both in [-1, 1]."""
    coil: float
    """How much the signal falls (log) from anterior to posterior: surface coils lie on the chest."""
    noise: float
    """Standard deviation of the noise, relative to full signal."""
    blur: float
    """Standard deviation of the point spread function in pixels."""

    @classmethod
    def draw(cls, random: np.random.Generator) -> Scanner:
        """Draw a scanner."""
        spread = np.array([_SIGNAL[tissue] for tissue in Tissue])
        bias = random.normal(0.0, 0.12, (3, 3))
        bias[0, 0] = 0.0
        return cls(
            signal=np.clip(spread[:, 0] + spread[:, 1] * random.normal(size=len(spread)), 0.0, None),
            texture=spread[:, 2] * random.uniform(0.7, 1.3),
            gain=float(random.uniform(250.0, 1200.0)),
            bias=bias,
            coil=float(random.uniform(0.1, 0.7)),
            noise=float(random.uniform(0.015, 0.05)),
            blur=float(random.uniform(0.35, 0.65)),
        )

    def expose(self, tissues: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.int16]:
        """Return the stored values of one slice: mixed, textured, blurred, weighted by the coils, noisy, rounded.

        Args:
            tissues: uint8 [H, W, samples] of :class:`Tissue`: what lies inside each voxel.
            random: source of texture and noise.

        Returns:
            int16 [H, W], not negative.
        """
        rows, columns = tissues.shape[:2]
        grain = _smooth_noise((rows, columns), 1.0, random)
        clouds = _smooth_noise((rows, columns), 3.5, random)
        depth = (self.signal * self.texture)[tissues].mean(axis=2)
        signal = self.signal[tissues].mean(axis=2) + depth * (0.5 * grain + 0.8 * clouds)
        vessels = (tissues == Tissue.LUNG).all(axis=2) & (0.7 * grain + 0.5 * clouds > 1.9)
        signal[vessels] = 0.5 * self.signal[Tissue.BLOOD]
        y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
        field = np.polynomial.polynomial.polyval2d(y, x, self.bias) - self.coil * y
        clean = ndimage.gaussian_filter(np.clip(signal, 0.0, None), self.blur) * np.exp(field)
        noise = self.noise * random.normal(size=(2, rows, columns))
        magnitude = np.hypot(clean + noise[0], noise[1])
        return np.asarray(np.clip(np.rint(magnitude * self.gain), 0, np.iinfo(np.int16).max), np.int16)


def _smooth_noise(shape: tuple[int, ...], scale: float, random: np.random.Generator) -> Floats:
    noise = ndimage.gaussian_filter(random.normal(size=shape), scale, mode="wrap")
    return np.asarray(noise / noise.std())

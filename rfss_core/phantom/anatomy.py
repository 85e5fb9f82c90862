"""Anatomy of a phantom: smooth shapes in millimetres, drawn from a random generator.

The frame is that of a short-axis slice: ``x`` grows to the patient's left, ``y`` to posterior, ``depth`` from the plane
of the valves towards the apex. Sizes follow the adult reference ranges of Kawel-Boehm et al., "Reference ranges
('normal values') for cardiovascular magnetic resonance in adults and children: 2020 update", JCMR 22:87, loosely: they
give the phantoms plausible proportions, nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Phase = Literal["ED", "ES"]
Condition = Literal["normal", "dilated", "hypertrophic", "enlarged_rv"]

PHASES: tuple[Phase, ...] = ("ED", "ES")
_CONDITIONS: tuple[Condition, ...] = ("normal", "dilated", "hypertrophic", "enlarged_rv")


class Tissue(IntEnum):
    """What a point of the phantom is made of."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    MEDIASTINUM = 4
    LIVER = 5
    STOMACH = 6
    SPINE = 7
    MYOCARDIUM = 8
    BLOOD = 9


@dataclass(frozen=True)
class Outline:
    """A closed curve: an ellipse whose radius is modulated by two harmonics.

    Args:
        radii: semi-axes in mm along and across ``angle``.
        angle: direction of the first semi-axis, in radians from ``x`` towards ``y``.
        wobble: relative amplitude and phase of the second and third harmonic.
    """

    radii: tuple[float, float]
    angle: float = 0.0
    wobble: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))

    def distance(self, x: Floats, y: Floats, grow: float = 0.0) -> Floats:
        """Return about how far points lie outside the curve (negative inside), in mm.

        Args:
            x: points relative to the curve's centre, in mm.
            y: the same, of x's shape.
            grow: margin in mm that is added to both semi-axes first.
        """
        a, b = (radius + grow for radius in self.radii)
        if min(a, b) <= 0:
            return np.full(np.broadcast(x, y).shape, np.inf)
        along = x * np.cos(self.angle) + y * np.sin(self.angle)
        across = y * np.cos(self.angle) - x * np.sin(self.angle)
        length = np.sqrt((along / a) ** 2 + (across / b) ** 2)
        if any(size for size, _ in self.wobble):
            # cos(n theta + phase) from the direction's own cosine and sine: many times faster than arctan2 and cos.
            away = np.maximum(np.sqrt(along * along + across * across), 1e-9)
            c, s = along / away, across / away
            (second, at_second), (third, at_third) = self.wobble
            length /= (
                1.0
                + second * ((c * c - s * s) * np.cos(at_second) - 2.0 * c * s * np.sin(at_second))
                + third * (c * (4.0 * c * c - 3.0) * np.cos(at_third) - s * (3.0 - 4.0 * s * s) * np.sin(at_third))
            )
        return np.asarray((length - 1.0) * min(a, b))


@dataclass(frozen=True)
class Ventricles:
    """Size of both ventricles in one phase, in mm."""

    base: float
    """Depth of the valves' plane."""
    apex: float
    """Depth of the left ventricle's outer apex."""
    cavity: float
    """Radius of the left cavity at the base."""
    wall: float
    """Thickness of the left wall at the base."""
    right: float
    """How far the right cavity reaches beyond the septum at the base."""

    def position(self, depth: float) -> float:
        """Return where a depth lies between base (0) and outer apex (1); outside of that range, it is neither."""
        return (depth - self.base) / (self.apex - self.base)

    def cavity_radius(self, depth: float) -> float:
        """Return the radius of the left cavity; 0 beyond its apex."""
        inner_apex = self.apex - 0.8 * self.wall
        at = (depth - self.base) / (inner_apex - self.base)
        return self.cavity * float(np.sqrt(max(0.0, 1.0 - max(at, 0.0) ** 2.3)))

    def outer_radius(self, depth: float) -> float:
        """Return the radius of the left ventricle with its wall; 0 beyond the apex."""
        at = max(self.position(depth), 0.0)
        if at >= 1.0:
            return 0.0
        inner = self.cavity_radius(depth)
        bullet = (self.cavity + self.wall) * float(np.sqrt(1.0 - at**2.6))
        return max(bullet, inner + 0.65 * self.wall) if inner > 0 else bullet

    def right_reach(self, depth: float) -> float:
        """Return how far the right cavity reaches beyond the septum; 0 beyond its end."""
        at = max(self.position(depth), 0.0) / 0.85
        return self.right * float(np.sqrt(max(0.0, 1.0 - at**2)))


@dataclass(frozen=True)
class Anatomy:
    """One phantom's body; :meth:`draw` makes one, :meth:`tissues` and :meth:`labels` look at a slice of it."""

    condition: Condition
    phases: dict[Phase, Ventricles]
    lean: tuple[float, float]
    """Drift of the long axis in x and y per mm of depth."""
    septum: float
    """Direction from the left to the right ventricle, in radians."""
    squash: float
    """Ratio of the left ventricle's two in-plane axes."""
    wobble: tuple[tuple[float, float], tuple[float, float]]
    """Deviation of the left ventricle's outlines from ellipses."""
    right_wobble: tuple[tuple[float, float], tuple[float, float]]
    """Deviation of the right cavity's outline from an ellipse: what makes it a crescent with a corner."""
    papillary: tuple[tuple[float, float], tuple[float, float]]
    """Angle (from the septum's direction) and radius (mm) of the two papillary muscles."""
    fat: tuple[float, float]
    """Thickness in mm of the fat under the skin and around the heart."""
    chest: tuple[float, float]
    """Centre of the chest relative to the heart, in mm."""
    organs: tuple[float, float, float]
    """Scale of liver, stomach and descending aorta."""

    @classmethod
    def draw(cls, random: np.random.Generator) -> Anatomy:
        """Draw an anatomy."""
        condition = _CONDITIONS[int(random.choice(4, p=(0.4, 0.2, 0.2, 0.2)))]
        size = random.normal(1.0, 0.05)
        cavity = size * random.normal(24.0, 1.2) * (1.22 if condition == "dilated" else 1.0)
        wall = size * random.normal(8.0, 0.6) * (1.6 if condition == "hypertrophic" else 1.0)
        right = size * random.normal(25.0, 2.0) * (1.35 if condition == "enlarged_rv" else 1.0)
        length = size * random.normal(82.0, 3.0)
        squeeze = random.uniform(0.80, 0.88) if condition == "dilated" else random.uniform(0.62, 0.72)
        shortening = size * random.uniform(9.0, 14.0)
        relaxed = Ventricles(0.0, length, cavity, wall, right)
        # The wall thickens as the cavity shrinks: its outer surface hardly moves.
        thick = random.uniform(0.92, 0.96) * (cavity + wall) - squeeze * cavity
        squeezed = Ventricles(shortening, length - 2.0, squeeze * cavity, thick, right * random.uniform(0.60, 0.75))
        return cls(
            condition=condition,
            phases={"ED": relaxed, "ES": squeezed},
            lean=(random.uniform(0.0, 0.16), random.uniform(-0.10, 0.02)),
            septum=np.pi + random.uniform(-0.15, 0.55),
            squash=random.uniform(0.93, 1.07),
            wobble=(
                (random.uniform(0.0, 0.03), random.uniform(0, 2 * np.pi)),
                (random.uniform(0.0, 0.03), random.uniform(0, 2 * np.pi)),
            ),
            right_wobble=(
                (random.uniform(0.0, 0.05), random.uniform(0.5, 1.5)),
                (random.uniform(0.04, 0.10), np.pi + random.uniform(-0.5, 0.5)),
            ),
            papillary=(
                (random.uniform(1.7, 2.2), random.uniform(3.0, 4.6)),
                (random.uniform(-2.2, -1.7), random.uniform(3.0, 4.6)),
            ),
            fat=(random.uniform(7.0, 20.0), random.uniform(2.5, 6.0)),
            chest=(random.uniform(-48.0, -26.0), random.uniform(30.0, 42.0)),
            organs=(random.uniform(0.85, 1.15), random.uniform(0.75, 1.15), random.uniform(0.85, 1.15)),
        )

    def labels(self, x: Floats, y: Floats, depth: float, phase: Phase) -> npt.NDArray[np.uint8]:
        """Return 1 in the right cavity, 2 in the left myocardium, 3 in the left cavity, else 0.

        Papillary muscles belong to the cavity, as in the ACDC challenge's protocol. Nothing is labelled above the
        plane of the valves.

        Args:
            x: points in mm.
            y: the same, of x's shape.
            depth: depth of the plane in mm.
            phase: ``ED`` or ``ES``.

        Returns:
            uint8 of the points' shape.
        """
        result = np.zeros(np.broadcast(x, y).shape, np.uint8)
        if not 0.0 <= self.phases[phase].position(depth) < 1.0:
            return result
        right, outer, inner = self._ventricles(x, y, depth, phase)
        result[right < 0] = 1
        result[outer < 0] = 2
        result[inner < 0] = 3
        return result

    def tissues(self, x: Floats, y: Floats, depths: Sequence[float], phase: Phase) -> npt.NDArray[np.uint8]:
        """Return the :class:`Tissue` of each point in neighbouring planes.

        Args:
            x: points in mm.
            y: the same, of x's shape.
            depths: depths of the planes in mm; what surrounds the heart is taken at their mean.
            phase: ``ED`` or ``ES``.

        Returns:
            uint8 of shape [planes, ...points].
        """
        around = self._surroundings(x, y, float(np.mean(depths)))
        result = np.stack([around] * len(depths))
        for plane, depth in zip(result, depths, strict=True):
            place = self.phases[phase].position(depth)
            if place < 0.0:
                self._paint_atria(plane, x, y, depth, phase)
            elif place < 1.0:
                self._paint_ventricles(plane, x, y, depth, phase)
        return result

    def _axis(self, depth: float) -> tuple[float, float]:
        # Zero in the middle of the heart, so that it stays near the middle of the picture.
        return self.lean[0] * (depth - 40.0), self.lean[1] * (depth - 40.0)

    def _ventricles(self, x: Floats, y: Floats, depth: float, phase: Phase) -> tuple[Floats, Floats, Floats]:
        """Return signed distances (mm) to the right cavity's and the left ventricle's outer and inner outlines."""
        size = self.phases[phase]
        cx, cy = self._axis(depth)
        outer, inner, reach = size.outer_radius(depth), size.cavity_radius(depth), size.right_reach(depth)
        away = 0.35 * outer + 0.45 * reach
        right = Outline(
            (outer + reach - away, outer * (0.78 + 0.25 * reach / size.right)), self.septum, self.right_wobble
        )
        return (
            right.distance(x - cx - away * np.cos(self.septum), y - cy - away * np.sin(self.septum)),
            self._left(outer).distance(x - cx, y - cy),
            self._left(inner).distance(x - cx, y - cy),
        )

    def _left(self, radius: float) -> Outline:
        return Outline((radius * self.squash, radius / self.squash), self.septum, self.wobble)

    def _paint_ventricles(self, into: npt.NDArray[np.uint8], x: Floats, y: Floats, depth: float, phase: Phase) -> None:
        right, outer, inner = self._ventricles(x, y, depth, phase)
        cx, cy = self._axis(depth)
        into[(right < 3.0 + self.fat[1]) | (outer < 0.4 * self.fat[1])] = Tissue.FAT
        into[right < 3.0] = Tissue.MYOCARDIUM
        into[right < 0.0] = Tissue.BLOOD
        into[outer < 0.0] = Tissue.MYOCARDIUM
        into[inner < 0.0] = Tissue.BLOOD
        place = self.phases[phase].position(depth)
        if 0.25 < place < 0.75:
            reach = 0.80 * self.phases[phase].cavity_radius(depth)
            bulk = 1.0 - 2.0 * abs(place - 0.5)
            for angle, radius in self.papillary:
                px = cx + reach * np.cos(self.septum + angle)
                py = cy + reach * np.sin(self.septum + angle)
                into[np.hypot(x - px, y - py) < (0.6 + 0.6 * bulk) * radius] = Tissue.MYOCARDIUM

    def _paint_atria(self, into: npt.NDArray[np.uint8], x: Floats, y: Floats, depth: float, phase: Phase) -> None:
        size = self.phases[phase]
        cx, cy = self._axis(depth)
        across = np.cos(self.septum), np.sin(self.septum)
        left, right = 0.95 * size.cavity, 0.8 * (size.cavity + size.right / 2)
        rooms = (
            (cx + 2.0, cy + 0.35 * left, left),
            (cx + across[0] * (left + right), cy + across[1] * (left + right) + 4.0, right),
            (cx + 0.5 * left * across[0], cy - 0.95 * left, 12.0),
        )
        for px, py, radius in rooms:
            into[np.hypot(x - px, y - py) < radius + 2.0 + self.fat[1]] = Tissue.FAT
        for px, py, radius in rooms:
            away = np.hypot(x - px, y - py)
            into[away < radius + 1.8] = Tissue.MYOCARDIUM
            into[away < radius] = Tissue.BLOOD

    def _surroundings(self, x: Floats, y: Floats, depth: float) -> npt.NDArray[np.uint8]:
        """Return the body without the heart."""
        cx, cy = self.chest
        liver, stomach, aorta = self.organs
        lower = np.clip(depth / 80.0, -0.2, 1.1)
        body = Outline((155.0, 108.0), 0.12, ((0.03, 0.5), (0.0, 0.0)))
        into = np.full(np.broadcast(x, y).shape, Tissue.AIR, np.uint8)
        into[body.distance(x - cx, y - cy) < 0] = Tissue.FAT
        into[body.distance(x - cx, y - cy, -self.fat[0]) < 0] = Tissue.MUSCLE
        inside = body.distance(x - cx, y - cy, -self.fat[0] - 9.0) < 0
        into[inside] = Tissue.LUNG
        shapes = (
            (Tissue.MEDIASTINUM, (-62.0, -2.0), (30.0, 66.0), 0.25),
            (Tissue.SPINE, (-42.0, 92.0), (22.0, 20.0), 0.0),
            (Tissue.FAT, (-66.0, 78.0), (liver * 66.0 + 4.0, liver * (30.0 + 24.0 * lower) + 4.0), -0.15),
            (Tissue.LIVER, (-68.0, 80.0), (liver * 64.0, liver * (30.0 + 24.0 * lower)), -0.15),
            (Tissue.FAT, (38.0, 88.0), (stomach * 42.0 + 5.0, stomach * (18.0 + 30.0 * lower) + 5.0), 0.3),
            (Tissue.STOMACH, (40.0, 90.0), (stomach * 40.0, stomach * (18.0 + 30.0 * lower)), 0.3),
            (Tissue.MUSCLE, (-6.0, 66.0), (aorta * 12.0 + 1.6, aorta * 12.0 + 1.6), 0.0),
            (Tissue.BLOOD, (-6.0, 66.0), (aorta * 12.0, aorta * 12.0), 0.0),
        )
        for tissue, (ox, oy), radii, angle in shapes:
            # The place doubles as the harmonics' phase, so that neighbours differ in shape.
            outline = Outline(radii, angle, ((0.05, ox), (0.04, oy)))
            into[inside & (outline.distance(x - ox, y - oy) < 0)] = tissue
        return into

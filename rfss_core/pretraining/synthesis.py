"""Synthetic tasks: label maps of random regions and shapes with random intensities.

Regions follow SynthMorph (Hoffmann et al., TMI 2022) and SynthSeg (Billot et al., MedIA 2023): a label map from
smooth noise, intensities drawn a class. Shapes add the topologies that organs have: blobs, nested layers, crescents
that hug another object, tubes, scattered small bodies. Nothing here knows any particular organ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rfss_core.pretraining.augmentation import (
    IMAGE,
    STRONG_IMAGE,
    blur,
    chance,
    integer,
    smooth_noise,
    uniform,
    warp,
    warp_grid,
)


def region_labels(generator: torch.Generator, count: int, size: int) -> Tensor:
    """Return [count, size, size] int64 label maps: one random tessellation, deformed and perturbed for each image."""
    classes = integer(generator, 3, 9)
    base = smooth_noise(generator, 1, classes, integer(generator, 3, 9), size)
    own = smooth_noise(generator, count, classes, integer(generator, 3, 6), size)
    logits = base + float(uniform(generator, (), 0.05, 0.3)) * own
    strength = STRONG_IMAGE if chance(generator, 0.5) else IMAGE
    logits = warp(logits, warp_grid(generator, count, size, None, strength), "reflection")
    return logits.argmax(1)


class _Canvas:
    """Paints objects that all images share, each image with its own place, size and outline."""

    def __init__(self, generator: torch.Generator, count: int, size: int) -> None:
        self.generator = generator
        self.count = count
        axis = (torch.arange(size) + 0.5) / size * 2 - 1
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")
        self.labels = torch.zeros(count, size, size, dtype=torch.int64)
        self.used = 0
        self.variation = float(uniform(generator, (), 0.03, 0.14))

    def _vary(self, *shape: int) -> Tensor:
        return self.variation * torch.randn((self.count, *shape), generator=self.generator)

    def place(self) -> Tensor:
        """Return centres [count, 2] around one random place."""
        return uniform(self.generator, (1, 2), -0.65, 0.65) + self._vary(2)

    def polar(self, centre: Tensor, aspect: float, turn: float) -> tuple[Tensor, Tensor]:
        """Return radius and angle [count, S, S] around the centres, in a turned and stretched frame."""
        dx, dy = self.x - centre[:, 0, None, None], self.y - centre[:, 1, None, None]
        angle = (turn + self._vary())[:, None, None]
        u = dx * torch.cos(angle) + dy * torch.sin(angle)
        v = (dy * torch.cos(angle) - dx * torch.sin(angle)) / aspect
        return torch.hypot(u, v), torch.atan2(v, u)

    def blob(self, centre: Tensor, radius: float) -> Tensor:
        """Return a field [count, S, S] below 1 inside a wobbly ellipse, the same one in every image but for noise."""
        generator = self.generator
        rho, phi = self.polar(
            centre,
            float(torch.exp(uniform(generator, (), -0.6, 0.0))),
            float(uniform(generator, (), -math.pi, math.pi)),
        )
        outline = torch.ones_like(rho)
        for order in range(2, 6):
            amplitude = (0.22 / order * torch.randn((1,), generator=generator) + self._vary() / order)[:, None, None]
            phase = float(uniform(generator, (), 0, 2 * math.pi))
            outline = outline + amplitude * torch.cos(order * phi + phase)
        size = radius * torch.exp(self._vary())[:, None, None]
        return rho / (size * outline.clamp(min=0.3))

    def paint(self, inside: Tensor, over: bool = True) -> None:
        """Give the pixels ``inside`` the next label; where not ``over``, only background is painted."""
        self.used += 1
        free = torch.ones_like(inside) if over else self.labels == 0
        self.labels[inside & free] = self.used

    def add(self) -> None:
        """Paint one object of a random kind."""
        generator = self.generator
        kind = integer(generator, 0, 5)
        centre, radius = self.place(), float(torch.exp(uniform(generator, (), -2.5, -0.5)))
        if kind <= 1:
            self.paint(self.blob(centre, radius) < 1)
        elif kind == 2:
            field = self.blob(centre, max(radius, 0.15))
            layers = integer(generator, 2, 3)
            thresholds = [1.0]
            for _ in range(layers - 1):
                thresholds.append(thresholds[-1] * float(uniform(generator, (), 0.5, 0.88)))
            for threshold in thresholds:
                self.paint(field < threshold)
        elif kind == 3:
            radius = max(radius, 0.12)
            field = self.blob(centre, radius)
            angle = float(uniform(generator, (), -math.pi, math.pi))
            reach = radius * float(uniform(generator, (), 0.4, 1.0))
            offset = torch.tensor([[math.cos(angle), math.sin(angle)]]) * reach
            other = self.blob(centre + offset, radius * float(uniform(generator, (), 0.7, 1.2)))
            self.paint((other < 1) & (field >= 1))
            if chance(generator, 0.6):
                self.paint(field < 1)
        elif kind == 4:
            self._tube(centre)
        else:
            self._scatter(radius)

    def _tube(self, centre: Tensor) -> None:
        generator = self.generator
        rho, phi = self.polar(centre, 1.0, float(uniform(generator, (), -math.pi, math.pi)))
        along, across = rho * torch.cos(phi), rho * torch.sin(phi)
        wave = float(uniform(generator, (), 0.0, 0.25)) * torch.sin(
            along * float(uniform(generator, (), 1.0, 5.0))
            + (float(uniform(generator, (), 0, 6)) + self._vary())[:, None, None]
        )
        width = float(uniform(generator, (), 0.03, 0.14)) * torch.exp(self._vary())[:, None, None]
        inside = ((across - wave).abs() < width) & (along.abs() < float(uniform(generator, (), 0.3, 1.5)))
        self.paint(inside)

    def _scatter(self, radius: float) -> None:
        generator = self.generator
        radius = min(radius, 0.18)
        inside = torch.zeros_like(self.labels, dtype=torch.bool)
        for _ in range(integer(generator, 3, 12)):
            centre = uniform(generator, (self.count, 2), -0.95, 0.95)
            inside |= self.blob(centre, radius * float(uniform(generator, (), 0.6, 1.3))) < 1
        self.paint(inside)


def shape_labels(generator: torch.Generator, count: int, size: int) -> Tensor:
    """Return [count, size, size] int64 label maps: a scene of a few shapes, varied for each image."""
    canvas = _Canvas(generator, count, size)
    for _ in range(integer(generator, 1, 5)):
        canvas.add()
    return canvas.labels


def paint_intensities(generator: torch.Generator, labels: Tensor) -> Tensor:
    """Draw images [N, S, S] in [0, 1] for label maps [N, S, S]: a mean a class, texture, blur, clutter."""
    count, size = labels.shape[0], labels.shape[-1]
    classes = int(labels.max()) + 1
    means = uniform(generator, (1, classes))
    jitter = float(uniform(generator, (), 0.0, 0.12)) * torch.randn((count, classes), generator=generator)
    images = torch.gather(means + jitter, 1, labels.flatten(1)).view(labels.shape)
    if chance(generator, 0.6):
        # Unlabelled clutter: structure that the task does not ask for.
        clutter = smooth_noise(generator, count, 1, integer(generator, 4, 12), size)[:, 0]
        background = labels == 0
        images = images + background * float(uniform(generator, (), 0.05, 0.35)) * clutter.sign()
    spread = uniform(generator, (1, classes), 0.0, 0.12)
    texture = smooth_noise(generator, count, 1, integer(generator, size // 12, size // 3), size)[:, 0]
    images = images + torch.gather(spread.expand(count, -1), 1, labels.flatten(1)).view(labels.shape) * texture
    if chance(generator, 0.7):
        images = blur(images, integer(generator, 1, max(1, size // 64)))
    if chance(generator, 0.25):
        # Speckle, as in ultrasound.
        images = images * (1 + 0.3 * smooth_noise(generator, count, 1, size // 2, size)[:, 0])
    return images.clamp(0, 1)

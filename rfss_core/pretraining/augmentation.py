"""Task-level and image-level augmentation of a group of images, as one warp and one shading.

UniverSeg (Butoi et al., ICCV 2023) showed that in-context segmentation needs both: what changes the whole task (so
that the network cannot know it by heart) and, milder, what changes each image of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Strength:
    """How far a warp goes."""

    rotation: float
    """Largest angle in radians, either way."""
    scale: float
    """Largest logarithm of the zoom, either way."""
    shear: float
    shift: float
    """Largest shift as a share of half the image."""
    elastic: float
    """Standard deviation of the elastic displacement, as a share of half the image."""
    flip: bool = False


TASK = Strength(rotation=math.pi, scale=0.45, shear=0.15, shift=0.15, elastic=0.0, flip=True)
MILD_TASK = Strength(rotation=0.3, scale=0.2, shear=0.05, shift=0.1, elastic=0.0, flip=True)
IMAGE = Strength(rotation=0.22, scale=0.13, shear=0.06, shift=0.08, elastic=0.025)
STILL = Strength(rotation=0, scale=0, shear=0, shift=0, elastic=0)
STRONG_IMAGE = Strength(rotation=0.45, scale=0.25, shear=0.12, shift=0.15, elastic=0.06)


def uniform(generator: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return uniform noise of ``shape`` between ``low`` and ``high``."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def chance(generator: torch.Generator, probability: float) -> bool:
    """Return True with the given probability."""
    return bool(torch.rand((), generator=generator) < probability)


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Return a uniform integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def smooth_noise(generator: torch.Generator, count: int, channels: int, cells: int, size: int) -> Tensor:
    """Return bicubic noise [count, channels, size, size] that varies over about ``size / cells`` pixels."""
    coarse = torch.randn((count, channels, cells, cells), generator=generator)
    return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def affines(generator: torch.Generator, count: int, strength: Strength) -> Tensor:
    """Return random homogeneous matrices [count, 3, 3] in the normalised coordinates of ``grid_sample``."""
    angle = uniform(generator, (count,), -strength.rotation, strength.rotation)
    zoom = torch.exp(uniform(generator, (count, 2), -strength.scale / 3, strength.scale / 3))
    zoom = zoom * torch.exp(uniform(generator, (count, 1), -strength.scale, strength.scale))
    if strength.flip:
        zoom = zoom * torch.where(uniform(generator, (count, 2)) < 0.5, -1.0, 1.0)
    shear = uniform(generator, (count,), -strength.shear, strength.shear)
    shift = uniform(generator, (count, 2), -strength.shift, strength.shift)
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.zeros(count, 3, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * zoom[:, 0], (shear - sin) * zoom[:, 1]
    matrix[:, 1, 0], matrix[:, 1, 1] = sin * zoom[:, 0], cos * zoom[:, 1]
    matrix[:, :2, 2], matrix[:, 2, 2] = shift, 1.0
    return matrix


def warp_grid(generator: torch.Generator, count: int, size: int, task: Strength | None, image: Strength) -> Tensor:
    """Return sampling grids [count, size, size, 2]: one task-level warp, then one of its own for each image."""
    matrix = affines(generator, count, image)
    if task is not None:
        matrix = affines(generator, 1, task) @ matrix
    grid = functional.affine_grid(matrix[:, :2], [count, 1, size, size], align_corners=False)
    if image.elastic:
        cells = integer(generator, 4, 7)
        grid = grid + image.elastic * smooth_noise(generator, count, 2, cells, size).permute(0, 2, 3, 1)
    return grid


def warp(planes: Tensor, grid: Tensor, padding: str, mode: str = "bilinear") -> Tensor:
    """Sample [N, C, h, w] planes at [N, S, S, 2]; ``padding`` as in ``grid_sample``."""
    return functional.grid_sample(planes, grid, mode=mode, padding_mode=padding, align_corners=False)


def remap(generator: torch.Generator, images: Tensor) -> Tensor:
    """Send the intensities of a whole group through one random curve (monotone, inverted or neither)."""
    knots = 6
    values = uniform(generator, (knots,))
    kind = float(torch.rand((), generator=generator))
    if kind < 0.75:
        values = values.sort(descending=kind > 0.5).values
    values = (values - values.min()) / (values.max() - values.min() + 1e-6)
    place = images.clamp(0, 1) * (knots - 1)
    low = place.floor().clamp(max=knots - 2)
    index = low.long()
    return torch.lerp(values[index], values[index + 1], place - low)


def shade(generator: torch.Generator, images: Tensor, amount: float = 1.0) -> Tensor:
    """Vary contrast, brightness, bias field, sharpness and noise of each image [N, S, S] on its own."""
    count, size = images.shape[0], images.shape[-1]
    shape = (count, 1, 1)
    gamma = torch.exp(uniform(generator, shape, -0.35, 0.35) * amount)
    images = images.clamp(0, 1) ** gamma
    gain = 1 + uniform(generator, shape, -0.2, 0.2) * amount
    images = (images - 0.5) * gain + 0.5 + uniform(generator, shape, -0.1, 0.1) * amount
    if chance(generator, 0.35):
        field = smooth_noise(generator, count, 1, 3, size)[:, 0]
        images = images * torch.exp(0.2 * amount * field)
    if chance(generator, 0.3):
        images = blur(images, integer(generator, 1, max(1, size // 64)))
    if chance(generator, 0.5):
        deviation = uniform(generator, shape, 0.0, 0.07) * amount
        images = images + deviation * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1)


def blur(images: Tensor, radius: int) -> Tensor:
    """Blur [N, S, S] by two passes of a box of ``2 radius + 1`` pixels."""
    width = 2 * radius + 1
    planes = images.unsqueeze(1)
    for _ in range(2):
        planes = functional.avg_pool2d(
            functional.pad(planes, (radius, radius, radius, radius), mode="replicate"), width, stride=1
        )
    return planes[:, 0]

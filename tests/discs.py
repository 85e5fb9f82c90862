"""Small slices that a network learns in seconds: a bright disc and a dark one."""

from __future__ import annotations

import numpy as np

from rfss_core.retrieval import SupportSet


def draw(number: int, shape: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Return a slice with a bright disc (2) and a dark one (5)."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, np.uint8)
    for value, share in ((2, 0.3), (5, 0.7)):
        row, column = shape[0] * rng.uniform(0.35, 0.65), shape[1] * (share + rng.uniform(-0.05, 0.05))
        mask[np.hypot(rows - row, columns - column) < 7] = value
    image = 0.5 + 0.35 * (mask == 2) - 0.35 * (mask == 5) + rng.normal(0, 0.04, shape)
    return image.clip(0, 1).astype(np.float32), mask


def support_of(patients: int, slices: int = 12) -> SupportSet:
    """Return slices that patients share evenly."""
    images, masks = zip(*(draw(number) for number in range(slices)), strict=True)
    return SupportSet.from_arrays(list(images), list(masks), [f"p{number % patients}" for number in range(slices)])

"""Augmentation of labelled slices, by MONAI."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from rfss_core.training.canvas import Canvas


class Augmentation:
    """Random geometry and intensity in the manner of nnU-Net (Isensee et al., Nature Methods 2021), without mirroring.

    Mirroring is left out because it turns one side of the body into the other: a right ventricle into a left one.

    One object must not serve two threads at the same time.

    Args:
        canvas: size of the slices, which bounds shifts and deformations.
    """

    def __init__(self, canvas: Canvas) -> None:
        from monai.transforms.compose import Compose
        from monai.transforms.intensity.dictionary import (
            RandAdjustContrastd,
            RandGaussianNoised,
            RandGaussianSmoothd,
            RandScaleIntensityd,
            RandShiftIntensityd,
        )
        from monai.transforms.spatial.dictionary import Rand2DElasticd, RandAffined

        both, image = ("image", "labels"), ("image",)
        side = (canvas.height + canvas.width) / 2
        modes: dict[str, Any] = {"mode": ("bilinear", "nearest"), "padding_mode": "border"}
        self._compose = Compose(
            [
                RandAffined(
                    both,
                    prob=0.8,
                    rotate_range=0.35,
                    scale_range=0.25,
                    shear_range=0.1,
                    translate_range=0.08 * side,
                    **modes,
                ),
                Rand2DElasticd(both, spacing=(side / 6, side / 6), magnitude_range=(0, side / 40), prob=0.3, **modes),
                RandGaussianSmoothd(image, prob=0.15, sigma_x=(0.4, 1.2), sigma_y=(0.4, 1.2)),
                RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5)),
                RandScaleIntensityd(image, prob=0.3, factors=0.25),
                RandShiftIntensityd(image, prob=0.3, offsets=0.3),
                RandGaussianNoised(image, prob=0.2, std=0.15),
            ]
        )

    def __call__(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Vary one slice.

        Args:
            image: float32 [C, H, W].
            labels: class indices [H, W].
            seed: decides everything that is random.

        Returns:
            The varied image, float32 [C, H, W], and labels, int64 [H, W].
        """
        self._compose.set_random_state(state=np.random.RandomState(seed))
        found: dict[str, Any] = self._compose({"image": image, "labels": labels[None].float()})
        varied, moved = (getattr(found[name], "as_tensor", lambda x=found[name]: x)() for name in ("image", "labels"))
        return varied.float(), moved[0].round().long()

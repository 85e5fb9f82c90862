"""The loss of supervised training: Dice and cross-entropy, weighted by confidence, blind to ignored voxels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

IGNORED = -1
"""Class index of a voxel that teaches nothing."""
_SMOOTH = 1e-5


def dice_ce(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return Dice loss (without background, over the batch) plus cross-entropy.

    With weights of 1 and nothing ignored this is MONAI's ``DiceCELoss(include_background=False, softmax=True,
    to_onehot_y=True, batch=True)``, which knows neither. A slice's weight multiplies its voxels in the cross-entropy
    and in the sums of the Dice; the Dice is a ratio, so it is multiplied by the mean weight too: a batch of half
    confidence pulls half as hard. Ignored voxels are in no sum.

    Args:
        logits: float32 [N, 1 + C, H, W].
        labels: class indices int64 [N, H, W], :data:`IGNORED` where nothing is to be learnt.
        weights: confidence of each slice, float32 [N], 0 to 1.

    Returns:
        The loss, a scalar; 0 where all is ignored.
    """
    known = labels != IGNORED
    voxels = known.sum().clamp(min=1)
    entropy = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    entropy_loss = (entropy * weights[:, None, None]).sum() / voxels
    counted = (known * weights[:, None, None])[:, None]
    truth = one_hot(labels.clamp(min=0), logits.shape[1]).movedim(-1, 1).to(logits.dtype)[:, 1:]
    found = logits.softmax(1)[:, 1:]
    both = (counted * found * truth).sum((0, 2, 3))
    sizes = (counted * (found + truth)).sum((0, 2, 3))
    dice_loss = (1 - (2 * both + _SMOOTH) / (sizes + _SMOOTH)).mean() * weights.mean()
    return torch.where(known.any(), entropy_loss + dice_loss, 0 * entropy_loss)

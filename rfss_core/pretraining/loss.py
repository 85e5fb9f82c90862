"""Losses of in-context training, after SAM 2 (Ravi et al., 2024, appendix D.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rfss_core.pretraining.conditioning import Answer, Memories

ABSENT_WEIGHT = 2.0
"""How much a query without the class counts in the object score's loss, against one with it."""


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts."""

    cross_entropy: float = 1.0
    dice: float = 1.0
    every_mask: float = 0.6
    """Share of the three masks' mean beside the best one. A task has one answer: masks that differ only give the IoU
    head occasion to choose wrongly (docs/pretraining-log.md, third session)."""
    iou: float = 0.3
    object_score: float = 0.4
    propagation: float = 0.4
    """Cross-entropy of the label that attention itself propagates: teaches the encoder correspondence directly."""


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - soft Dice over the last two axes."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def in_context_loss(
    answer: Answer, memories: Memories, masks: Tensor, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare answers with the truth.

    Args:
        answer: answers for B queries.
        memories: of the same B images as supports (for the pointers' object scores).
        masks: [B, S, S] of 0 and 1.
        weights: of the parts.

    Returns:
        The loss, and detached figures: ``dice`` is the mean soft Dice of the chosen masks where the class is present.
    """
    logits = answer.logits.float()
    count, masks_out, height, width = logits.shape
    target = functional.adaptive_avg_pool2d(masks[:, None], (height, width))
    present = (masks.flatten(1).amax(1) > 0).float()
    wide = target.expand(-1, masks_out, -1, -1)
    entropy = functional.binary_cross_entropy_with_logits(logits, wide, reduction="none").mean((2, 3))
    dice = soft_dice(logits, wide)
    # An absent class has no overlap to speak of: only the cross-entropy pushes its mask down.
    each = weights.cross_entropy * entropy + weights.dice * dice * present[:, None]
    mask_loss = (1 - weights.every_mask) * each.min(1).values + weights.every_mask * each.mean(1)

    with torch.no_grad():
        hard, truth = logits > 0, wide > 0.5
        union = (hard | truth).sum((2, 3))
        overlap = (hard & truth).sum((2, 3)) / union.clamp(min=1)
        overlap = torch.where(union == 0, torch.ones_like(overlap), overlap)
    iou_loss = ((answer.iou.float() - overlap).abs().mean(1) * present).sum() / present.sum().clamp(min=1)
    # Fewer queries lack the class here than slices of a volume do.
    balance = torch.where(present > 0, 1.0, ABSENT_WEIGHT)
    score_loss = functional.binary_cross_entropy_with_logits(answer.object_score.float(), present, balance)
    if memories.pointer_scores is not None:
        score_loss = score_loss + functional.binary_cross_entropy_with_logits(memories.pointer_scores.float(), present)
    tokens = answer.propagated.shape[-1]
    side = int(tokens**0.5)
    coarse = functional.adaptive_avg_pool2d(masks[:, None], (side, side)).view(count, 1, tokens)
    label = answer.propagated.float().clamp(1e-3, 1 - 1e-3)
    # CUDA's autocast refuses this loss, float32 or not.
    with torch.autocast(label.device.type, enabled=False):
        propagation = functional.binary_cross_entropy(label, coarse.float().expand_as(label))

    total = (
        mask_loss.mean()
        + weights.iou * iou_loss
        + weights.object_score * score_loss
        + weights.propagation * propagation
    )
    chosen = answer.iou.argmax(1, keepdim=True)
    figures = {
        "loss": total,
        "dice": ((1 - dice.gather(1, chosen)[:, 0]) * present).sum() / present.sum().clamp(min=1),
        "iou_error": iou_loss,
        "presence": ((answer.object_score > 0).float() == present).float().mean(),
        "propagation": propagation,
    }
    return total, {name: value.detach() for name, value in figures.items()}

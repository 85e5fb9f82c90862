"""From one logit map a class to one label map.

Three rules. ``logits``: every pixel takes the class with the highest logit, or background where none is above 0 (the
background's logit). ``softmax``: soft aggregation (Oh et al., "Video Object Segmentation using Space-Time Memory
Networks", arXiv:1904.00607; used by XMem): the background's probability is the product of every class's
one-minus-probability, so two classes that are each unsure can together push the background away. ``exclusive``: the
official predictor's non-overlap rule (``_apply_non_overlapping_constraints``): all but the highest object of a pixel
are pressed to at most -10. ``logits`` and ``exclusive`` give the same labels; they differ in the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rfss_core.settings import MergeRule

ABSENT_LOGIT = -1024.0
"""Logit of every pixel of an object that is not in the image (``NO_OBJ_SCORE`` of the official code)."""
_PRESSED = -10.0


def gate(logits: Tensor, object_score: Tensor, threshold: float | None) -> Tensor:
    """Turn classes whose object score is not above the threshold into absent ones.

    Args:
        logits: float32 [C, H, W].
        object_score: float32 [C], logits.
        threshold: the official predictor's is 0; None lets everything through.

    Returns:
        float32 [C, H, W].
    """
    if threshold is None:
        return logits
    return torch.where((object_score > threshold)[:, None, None], logits, ABSENT_LOGIT)


def merge(logits: Tensor, rule: MergeRule = "logits") -> tuple[Tensor, Tensor]:
    """Merge the classes of one slice.

    Args:
        logits: float32 [C, H, W], gated.
        rule: how.

    Returns:
        Label index uint8 [H, W] (0 background, c + 1 for plane c) and the logits float32 [C, H, W] after the rule.
    """
    if rule == "exclusive":
        winner = logits.argmax(dim=0, keepdim=True)
        own = torch.arange(len(logits), device=logits.device)[:, None, None]
        logits = torch.where(winner == own, logits, logits.clamp(max=_PRESSED))
    elif rule == "softmax":
        logits = soft_aggregation(logits)
    highest, index = logits.max(dim=0)
    return torch.where(highest > 0, index + 1, 0).to(torch.uint8), logits


def soft_aggregation(logits: Tensor) -> Tensor:
    """Return each class's logit relative to the background's, after soft aggregation.

    With probability p of each class alone, the background's is the product of all (1 - p). Every probability becomes an
    odds ratio and the ratios are normalised; a class's logit against the background is then the difference of the two
    log-odds.

    Args:
        logits: float32 [C, H, W].

    Returns:
        float32 [C, H, W]: above 0 where the class beats the background.
    """
    log_background = -softplus(logits).sum(dim=0).clamp(min=1e-6)
    background = log_background - torch.log(-torch.expm1(log_background))
    return logits - background

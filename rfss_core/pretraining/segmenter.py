"""The embedded SAM 2: what it is built from and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import Sam2VideoConfig, Sam2VideoModel

from rfss_core.errors import SettingsError
from rfss_core.pretraining.conditioning import InContextSam2
from rfss_core.pretraining.loss import LossWeights, in_context_loss
from rfss_core.pretraining.propagation import initialise
from rfss_core.pretraining.settings import TrainingSettings
from rfss_core.pretraining.task import GroupDataset
from rfss_core.pretraining.trainer import Batch

CONFIG = Path(__file__).parents[1] / "weights" / "sam2-tiny"
POINTERS = 0.7
"""Share of the steps in which object pointers join the memories: the model must do without them, too."""

SHOWN_ONLY = 0.4
"""Share of the groups whose supports all show the class."""


def build_sam2(size: int, folder: Path = CONFIG) -> Any:
    """Build the architecture in ``folder/config.json`` for images of ``size`` x ``size``, untrained.

    All weights fit every size: only grids and rotary tables change.
    """
    config: Any = Sam2VideoConfig.from_pretrained(folder)
    tokens = size // 16
    config.image_size = size
    config.prompt_encoder_config.image_size = size
    config.vision_config.backbone_config.image_size = [size, size]
    config.vision_config.backbone_feature_sizes = [[size // stride, size // stride] for stride in (4, 8, 16)]
    config.memory_attention_rope_feat_sizes = [tokens, tokens]
    return Sam2VideoModel(config)


class InContextObjective:
    """In-context segmentation: every image of a group is segmented from random others.

    Args:
        settings: of the training.
        weights: of the parts of the loss.

    Raises:
        SettingsError: a size that the network cannot take.
    """

    kind = "sam2"

    def __init__(self, settings: TrainingSettings, weights: LossWeights | None = None) -> None:
        if settings.size % 32:
            raise SettingsError(f"size must be a multiple of 32, SAM 2's coarsest stride, got {settings.size}: try 128")
        torch.manual_seed(settings.seed)
        sam2 = build_sam2(settings.size)
        sample = default_collate([GroupDataset([], settings.size, seed=settings.seed + 7)[i] for i in range(8)])
        initialise(sam2, sample["images"], sample["masks"], settings.seed)
        self.context = InContextSam2(sam2)
        self.model: nn.Module = sam2
        self.weights = weights or LossWeights()

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss over all queries of a batch of groups, with random supports for each."""
        images, masks = batch["images"], batch["masks"]
        self.context.to(images.device)
        groups, members = images.shape[:2]
        present = (masks.flatten(2).amax(2) > 0).cpu()
        allow = draw_supports(present, generator).to(images.device)
        order = torch.rand((groups, members), generator=generator).argsort(1) + 1
        pointers = bool(torch.rand((), generator=generator) < POINTERS)
        answer, memories = self.context(images, masks, allow, (order / members).to(images.device), pointers)
        return in_context_loss(answer, memories, masks.flatten(0, 1), self.weights)


def draw_supports(present: Tensor, generator: torch.Generator) -> Tensor:
    """Draw which members serve which query.

    Half of the queries take all others, half a random number of them; each has at least one support that shows the
    class. In some groups only members that show the class are supports, as in a support set without empty slices: a
    query must find out by itself that it lacks the class.

    Args:
        present: [G, n] bool, which members show the class; two of each group at least.
        generator: source of the draw.

    Returns:
        [G, n, n] bool, True where the query (second axis) may look at the support (third axis).
    """
    groups, members = present.shape
    score = torch.rand((groups, members, members), generator=generator)
    score.diagonal(dim1=1, dim2=2).fill_(2.0)
    rank = score.argsort(2).argsort(2)
    few = torch.randint(1, members, (groups, members), generator=generator)
    wanted = torch.where(torch.rand((groups, members), generator=generator) < 0.5, members - 1, few)
    allow = rank < wanted[..., None]
    shown_only = torch.rand((groups, 1, 1), generator=generator) < SHOWN_ONLY
    allow &= present[:, None] | ~shown_only
    teaches = present[:, None] & ~torch.eye(members, dtype=torch.bool)
    best = torch.where(teaches, score, 3.0).argmin(2)
    lacks = ~(allow & teaches).any(2)
    return allow | (lacks[..., None] & nn.functional.one_hot(best, members).bool())

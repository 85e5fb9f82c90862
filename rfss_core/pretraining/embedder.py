"""The embedded DINOv2: slices whose label maps agree become neighbours.

Supervised soft contrast: the target distribution over the other images of a batch follows the Dice of the label
maps (after augmentation), the predicted one the cosine of the CLS embeddings, as in the soft nearest-neighbour view
of SupCon (Khosla et al., NeurIPS 2020) with graded labels. That is the very quantity by which retrieval is judged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from rfss_core.errors import SettingsError
from rfss_core.pretraining.conditioning import IMAGE_MEAN, IMAGE_STD
from rfss_core.pretraining.glimpse import initialise_glimpses
from rfss_core.pretraining.settings import TrainingSettings
from rfss_core.pretraining.task import LabelledGroupDataset
from rfss_core.pretraining.trainer import Batch

CONFIG = Path(__file__).parents[1] / "weights" / "dinov2-tiny"
TARGET_TEMPERATURE = 0.08
TEMPERATURE = 0.1
LABEL_SIZE = 32
"""Label maps are compared at this many pixels a side."""


def build_dinov2(folder: Path = CONFIG) -> Any:
    """Build the architecture in ``folder/config.json``, untrained."""
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig.from_pretrained(folder))


def standardise(images: Tensor) -> Tensor:
    """Turn grey images [B, S, S] in [0, 1] into three channels with ImageNet's mean and deviation taken out."""
    mean = images.new_tensor(IMAGE_MEAN).view(1, 3, 1, 1)
    std = images.new_tensor(IMAGE_STD).view(1, 3, 1, 1)
    return (images[:, None].expand(-1, 3, -1, -1) - mean) / std


def embed(model: Any, images: Tensor) -> Tensor:
    """Return L2-normalised CLS embeddings [B, D] of grey images [B, S, S] in [0, 1]."""
    output: Tensor = model(pixel_values=standardise(images)).last_hidden_state[:, 0]
    return functional.normalize(output.float(), dim=-1)


def label_agreement(labels: Tensor) -> Tensor:
    """Return the mean Dice between label maps.

    Args:
        labels: [n, S, S] int64 of one label space; 0 is background.

    Returns:
        [n, n] Dice averaged over the classes that either map shows; 1 where both show none.
    """
    step = max(1, labels.shape[-1] // LABEL_SIZE)
    small = labels[:, ::step, ::step].flatten(1)
    values = torch.unique(small)
    planes = torch.stack([small == value for value in values if value != 0], 1).float() if values.max() else None
    count = len(labels)
    if planes is None:
        return torch.ones(count, count)
    overlap = torch.einsum("icp,jcp->ijc", planes, planes)
    area = planes.sum(2)
    total = area[:, None] + area[None]
    shown = total > 0
    dice = torch.where(shown, 2 * overlap / total.clamp(min=1), torch.zeros_like(total)).sum(2)
    classes = shown.sum(2)
    return torch.where(classes > 0, dice / classes.clamp(min=1), torch.ones_like(dice))


def agreement_loss(embeddings: Tensor, agreement: Tensor, sources: Tensor) -> Tensor:
    """Return the cross-entropy between the graded targets and the predicted neighbours.

    Args:
        embeddings: [G, n, D] L2-normalised.
        agreement: [G, n, n] label agreement within each group.
        sources: [G] identity of each group's set; images of two groups of one set are not told apart.

    Returns:
        Scalar.
    """
    groups, members = embeddings.shape[:2]
    flat = embeddings.flatten(0, 1)
    cosine = flat @ flat.T / TEMPERATURE
    group = torch.arange(groups, device=flat.device).repeat_interleave(members)
    same_group = group[:, None] == group[None]
    same_set = sources.repeat_interleave(members)[:, None] == sources.repeat_interleave(members)[None]
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    hidden = itself | (same_set & ~same_group)
    predicted = cosine.masked_fill(hidden, -1e4).log_softmax(1)
    inner = agreement / TARGET_TEMPERATURE
    inner = inner.masked_fill(torch.eye(members, dtype=torch.bool, device=flat.device), -1e4).softmax(-1)
    target = torch.zeros_like(predicted)
    for place, block in enumerate(inner):
        rows = slice(place * members, (place + 1) * members)
        target[rows, rows] = block
    return -(target * predicted).sum(1).mean()


class AgreementObjective:
    """Trains the embedder on groups with label maps.

    Args:
        settings: of the training.
        sample: [B, S, S] in [0, 1], a few hundred varied images to centre the embedding by; None takes synthetic ones.

    Raises:
        SettingsError: a size that is no multiple of the patch.
    """

    kind = "dinov2"

    def __init__(self, settings: TrainingSettings, sample: Tensor | None = None) -> None:
        if settings.size % 14:
            raise SettingsError(f"size must be a multiple of 14, the patch size, got {settings.size}; take 112")
        torch.manual_seed(settings.seed)
        self.model: nn.Module = build_dinov2()
        if sample is None:
            data = LabelledGroupDataset([], 112, 8, seed=settings.seed + 7)
            sample = torch.cat([data[i]["images"] for i in range(8)])
        initialise_glimpses(self.model, standardise(sample), settings.seed)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """Return the loss of a batch of groups; ``neighbour`` is the agreement with the nearest in the group."""
        images, labels = batch["images"], batch["labels"]
        groups, members = images.shape[:2]
        embeddings = embed(self.model, images.flatten(0, 1)).view(groups, members, -1)
        agreement = torch.stack([label_agreement(item.cpu()) for item in labels]).to(images.device)
        loss = agreement_loss(embeddings, agreement, batch["source"])
        with torch.no_grad():
            cosine = (embeddings @ embeddings.transpose(1, 2)) - 2 * torch.eye(members, device=images.device)
            nearest = agreement.gather(2, cosine.argmax(2, keepdim=True)).mean()
            chance = (agreement.sum((1, 2)) - agreement.diagonal(dim1=1, dim2=2).sum(1)) / (members * (members - 1))
        return loss, {"loss": loss.detach(), "neighbour": nearest, "chance": chance.mean()}

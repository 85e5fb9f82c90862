"""Groups of images of one task, drawn reproducibly: group ``i`` of a seed is always the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from rfss_core.pretraining.augmentation import (
    IMAGE,
    MILD_TASK,
    STILL,
    STRONG_IMAGE,
    TASK,
    Strength,
    chance,
    integer,
    remap,
    shade,
    uniform,
    warp,
    warp_grid,
)
from rfss_core.pretraining.pack import Pack
from rfss_core.pretraining.synthesis import paint_intensities, region_labels, shape_labels

Kind = Literal["expert", "derived", "region", "synthetic-regions", "synthetic-shapes"]

SET_WEIGHTS: dict[str, float] = {
    "hippocampus": 3,
    "prostate-mr": 2,
    "prostate-us": 2,
    "fetal-head": 1,
    "fetal-head-pack": 1,
    "nuclei": 1,
    "spine-mr": 3,
    "spleen-ct": 1,
    "carotid-us": 1,
}
"""How often each set is drawn: by how many different tasks it holds, not by how many slices."""

PADDINGS = ("zeros", "border", "reflection")
NATURAL = 0.7
"""Share of the embedder's expert groups whose images are not warped one by one."""
LEAST_AREA = 0.0015
"""A class smaller than this share of the image counts as absent."""
ABSENT_GROUPS = 0.65
"""Share of the groups in which some members lack the class."""
ABSENT_MEMBERS = 0.45
"""Share of such a group's members that lack it. Half of a volume's slices may."""


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of task."""

    expert: float = 0.45
    """A class, or a union of classes, that an expert drew."""
    derived: float = 0.08
    """A rim or a half of such a class."""
    region: float = 0.12
    """A superpixel of one image, over strong distortions of that image."""
    synthetic_regions: float = 0.13
    synthetic_shapes: float = 0.22

    def draw(self, generator: torch.Generator) -> Kind:
        """Draw a kind of task."""
        kinds: tuple[Kind, ...] = ("expert", "derived", "region", "synthetic-regions", "synthetic-shapes")
        shares = torch.tensor(
            [self.expert, self.derived, self.region, self.synthetic_regions, self.synthetic_shapes],
            dtype=torch.float32,
        )
        return kinds[int(torch.multinomial(shares, 1, generator=generator))]


SYNTHETIC = Mixture(expert=0, derived=0, region=0, synthetic_regions=0.4, synthetic_shapes=0.6)
"""Tasks that need no packed data at all."""


class _Set:
    """A pack as tensors, with what is needed to draw from it."""

    def __init__(self, pack: Pack) -> None:
        slices = pack.slices
        self.name = pack.name
        self.images = torch.from_numpy(slices.images)
        self.labels = torch.from_numpy(slices.labels)
        self.regions = torch.from_numpy(pack.regions)
        self.positions = torch.from_numpy(slices.positions)
        self.axes = torch.from_numpy(slices.axes)
        pixels = self.labels[0].numel()
        values = [int(v) for v in torch.unique(self.labels) if v]
        self.areas = {v: (self.labels == v).flatten(1).sum(1) / pixels for v in values}
        # A class that hardly any slice shows makes no task.
        self.classes = [v for v in values if int((self.areas[v] > LEAST_AREA).sum()) >= min(4, len(self.labels))]


class GroupDataset(Dataset[dict[str, Tensor]]):
    """Endless groups for in-context training.

    Item ``i`` holds ``images`` [n, S, S] float32 in [0, 1] and ``masks`` [n, S, S] float32 from 0 to 1, one class.

    Args:
        packs: packed sets; may be empty for a purely synthetic mixture.
        size: pixels a side, S.
        members: images in a group, n.
        seed: seed of all draws.
        mixture: shares of the kinds of task.
        augment: False leaves expert images as they are (validation).
    """

    def __init__(
        self,
        packs: list[Pack],
        size: int,
        members: int = 8,
        seed: int = 0,
        mixture: Mixture | None = None,
        augment: bool = True,
    ) -> None:
        self.sets = [_Set(pack) for pack in packs]
        self.weights = torch.tensor([SET_WEIGHTS.get(item.name, 1.0) for item in self.sets], dtype=torch.float32)
        self.size = size
        self.members = members
        self.seed = seed
        self.mixture = mixture or (Mixture() if packs else SYNTHETIC)
        self.augment = augment

    def __len__(self) -> int:
        """Return the number of groups: as good as endless."""
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw group ``index``."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        while True:
            images, masks = self._draw(self.mixture.draw(generator), generator)
            present = masks.mean((1, 2)) > LEAST_AREA
            # A memory needs a teacher and a query: two members at least must show the class.
            if int(present.sum()) >= 2:
                return {"images": images, "masks": masks}

    def _draw(self, kind: Kind, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if kind == "synthetic-regions":
            return self._synthetic(region_labels(generator, self.members, self.size), generator)
        if kind == "synthetic-shapes":
            return self._synthetic(shape_labels(generator, self.members, self.size), generator)
        source = self.sets[int(torch.multinomial(self.weights, 1, generator=generator))]
        if kind == "region":
            return self._region(source, generator)
        images, masks = self._expert(source, generator)
        return images, (_derive(masks, generator) if kind == "derived" else masks)

    def _synthetic(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        value = integer(generator, 1 if chance(generator, 0.9) else 0, max(1, int(labels.max())))
        target = labels == value
        if chance(generator, 0.25):
            target |= labels == value + 1
        if chance(generator, ABSENT_GROUPS):
            absent = uniform(generator, (self.members, 1, 1)) < ABSENT_MEMBERS
            others = integer(generator, 0, int(labels.max()))
            labels = torch.where(absent & target, others, labels)
            target = target & ~absent
        return shade(generator, paint_intensities(generator, labels), 0.5), target.float()

    def _region(self, source: _Set, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = integer(generator, 0, len(source.regions) - 1)
        regions = source.regions[index]
        values, counts = torch.unique(regions, return_counts=True)
        fit = values[(counts > 0.005 * regions.numel()) & (counts < 0.4 * regions.numel())]
        if not len(fit):
            return self._synthetic(region_labels(generator, self.members, self.size), generator)
        value = fit[integer(generator, 0, len(fit) - 1)]
        image = self._shrink(source.images[index].float()[None] / 255).expand(self.members, -1, -1)
        mask = self._shrink((regions == value).float()[None]).expand(self.members, -1, -1)
        images, masks = self._augmented(image, mask, TASK, STRONG_IMAGE, generator)
        if chance(generator, 0.5):
            images = torch.cat([remap(generator, item[None]) for item in images])
        return images, masks

    def _expert(self, source: _Set, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        value = source.classes[integer(generator, 0, len(source.classes) - 1)]
        area = source.areas[value]
        mask_of = [value]
        if len(source.classes) > 1 and chance(generator, 0.15):
            mask_of.append(source.classes[integer(generator, 0, len(source.classes) - 1)])
        index = _similar_slices(source, area > LEAST_AREA, self.members, generator)
        if chance(generator, ABSENT_GROUPS):
            without = (area == 0) & (source.axes == source.axes[index[0]])
            index = _with_absent(source, index, without, generator)
        images = self._shrink(source.images[index].float() / 255)
        labels = source.labels[index]
        masks = self._shrink(sum((labels == v).float() for v in set(mask_of)))  # type: ignore[arg-type]
        if not self.augment:
            grid = warp_grid(generator, self.members, self.size, None, STILL)
            return warp(images[:, None], grid, "border")[:, 0], (
                warp(masks[:, None], grid, "border")[:, 0] > 0.5
            ).float()
        task = TASK if chance(generator, 0.5) else MILD_TASK
        return self._augmented(images, masks, task, IMAGE, generator)

    def _augmented(
        self, images: Tensor, masks: Tensor, task: Strength, image: Strength, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        grid = warp_grid(generator, self.members, self.size, task, image)
        padding = PADDINGS[integer(generator, 0, 2)]
        planes = warp(torch.stack([images, masks], 1), grid, padding)
        shown = planes[:, 0]
        if chance(generator, 0.5):
            shown = remap(generator, shown)
        # Masks of coarse grids reach the engine with soft edges, those of fine grids with hard ones.
        soft = chance(generator, 0.5)
        return shade(generator, shown), planes[:, 1] if soft else (planes[:, 1] > 0.5).float()

    def _shrink(self, planes: Tensor) -> Tensor:
        factor = planes.shape[-1] // self.size
        return functional.avg_pool2d(planes, factor) if factor > 1 else planes


def _similar_slices(source: _Set, shows: Tensor, members: int, generator: torch.Generator) -> Tensor:
    # Retrieval brings slices of about the same level, so most groups are drawn that way.
    candidates = torch.nonzero(shows)[:, 0]
    anchor = candidates[integer(generator, 0, len(candidates) - 1)]
    weights = (source.axes[candidates] == source.axes[anchor]).float()
    if chance(generator, 0.7):
        distance = source.positions[candidates] - source.positions[anchor]
        weights = weights * (torch.exp(-((distance / 0.08) ** 2)) + 1e-4)
    enough = int((weights > 0).sum()) >= members
    drawn = torch.multinomial(weights, members - 1, replacement=not enough, generator=generator)
    return torch.cat([anchor[None], candidates[drawn]])


def _with_absent(source: _Set, index: Tensor, without: Tensor, generator: torch.Generator) -> Tensor:
    # A volume's slices beyond the organ look like its last ones. Whoever never met them as queries finds the organ
    # there, too, so slices near the anchor's level come first.
    candidates = torch.nonzero(without)[:, 0]
    if not len(candidates):
        return index
    distance = source.positions[candidates] - source.positions[index[0]]
    weights = torch.exp(-((distance / 0.15) ** 2)) + 0.02
    drawn = candidates[torch.multinomial(weights, len(index), replacement=True, generator=generator)]
    replaced = uniform(generator, (len(index),)) < ABSENT_MEMBERS
    replaced[0] = False
    return torch.where(replaced, drawn, index)


def _derive(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Return the rim or one half of each mask."""
    size = masks.shape[-1]
    if chance(generator, 0.5):
        width = 2 * integer(generator, max(1, size // 64), max(2, size // 20)) + 1
        inner = 1 - functional.max_pool2d(1 - masks[:, None], width, stride=1, padding=width // 2)[:, 0]
        return masks - inner
    axis = torch.arange(size, dtype=torch.float32)
    weight = masks.sum((1, 2)).clamp(min=1)
    rows = (masks.sum(2) * axis).sum(1) / weight
    columns = (masks.sum(1) * axis).sum(1) / weight
    angle = uniform(generator, (), -torch.pi, torch.pi)
    side = (axis[:, None] - rows[:, None, None]) * torch.sin(angle)
    side = side + (axis - columns[:, None, None]) * torch.cos(angle)
    return masks * (side > 0)


class LabelledGroupDataset(GroupDataset):
    """Endless groups with whole label maps, for the embedder.

    Item ``i`` holds ``images`` [n, S, S] float32, ``labels`` [n, S, S] int64 and ``source``, the number of its set
    (negative and unique for synthetic groups).
    """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw group ``index``."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        kind = self.mixture.draw(generator)
        if kind.startswith("synthetic"):
            draw = region_labels if kind == "synthetic-regions" else shape_labels
            labels = draw(generator, self.members, self.size)
            images = shade(generator, paint_intensities(generator, labels), 0.5)
            return {"images": images, "labels": labels, "source": torch.tensor(-1 - index % 2**31)}
        number = int(torch.multinomial(self.weights, 1, generator=generator))
        source = self.sets[number]
        if kind == "region":
            chosen = torch.full((self.members,), integer(generator, 0, len(source.regions) - 1))
            planes = source.regions[chosen]
        else:
            axis = source.axes[integer(generator, 0, len(source.axes) - 1)]
            candidates = torch.nonzero(source.axes == axis)[:, 0]
            weights = torch.ones(len(candidates))
            drawn = torch.multinomial(
                weights, self.members, replacement=len(candidates) < self.members, generator=generator
            )
            chosen = candidates[drawn]
            planes = source.labels[chosen]
        images = self._shrink(source.images[chosen].float() / 255)
        # Images that really were taken of different patients vary as much as retrieval will see. Warping each of them
        # again would teach that neither place nor brightness tells anything, which is wrong within one set.
        natural = not self.augment or (kind == "expert" and chance(generator, NATURAL))
        task = None if not self.augment else TASK if kind == "region" else MILD_TASK
        image = STRONG_IMAGE if kind == "region" else STILL if natural else IMAGE
        grid = warp_grid(generator, self.members, self.size, task, image)
        padding = PADDINGS[integer(generator, 0, 2)]
        shown = warp(images[:, None], grid, padding)[:, 0]
        labels = warp(planes.float()[:, None], grid, padding, mode="nearest")[:, 0].long()
        if self.augment:
            if chance(generator, 0.4):
                shown = remap(generator, shown)
            shown = shade(generator, shown, 0.25 if natural else 1.0)
        return {"images": shown, "labels": labels, "source": torch.tensor(number)}

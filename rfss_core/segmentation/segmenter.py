"""What every segmenter promises, and the checks of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rfss_core.errors import SettingsError, SupportError

Slice = npt.NDArray[np.float32]
"""[H, W] or [H, W, 3] in [0, 1]."""


class Neighbours(Protocol):
    """The support slices of one query, nearest first."""

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """[k] positions in the support set."""

    @property
    def distances(self) -> npt.NDArray[np.float32]:
        """[k] squared L2 distances."""

    def for_class(self, value: int, /) -> npt.NDArray[np.int64]:
        """[k'] positions of those that serve one class; for most strategies all of them."""


class Supports(Protocol):
    """The part of a support set that segmentation reads. A set never changes: another content is another object."""

    @property
    def ids(self) -> Sequence[str]:
        """Name of each slice."""

    @property
    def classes(self) -> Mapping[int, str]:
        """Names of the label values, 1 to 255."""

    def __len__(self) -> int: ...

    def image(self, index: int, /) -> npt.NDArray[Any]:
        """Slice ``index``: float32 [H, W] or [H, W, 3] in [0, 1]."""

    def mask(self, index: int, /) -> npt.NDArray[Any]:
        """Label map of slice ``index``: uint8 [H, W]."""


@dataclass(frozen=True)
class Segmentation:
    """The labels of one slice. Planes and scores follow the class values in ascending order."""

    labels: npt.NDArray[np.uint8]
    """[H, W]: class values as in the support set, 0 background."""
    object_score: npt.NDArray[np.float32]
    """[C]: logit of the class being in the slice at all."""
    predicted_iou: npt.NDArray[np.float32]
    """[C] in [0, 1]: the segmenter's own estimate of each mask's IoU."""
    logits: npt.NDArray[np.float32] | None
    """[C, H, W]: raw logits on the slice's grid, before the object-score gate; None where not asked for."""


class Segmenter(Protocol):
    """Labels slices with the help of their neighbours in a support set."""

    @property
    def digest(self) -> str:
        """sha256 of all that decides its labels besides query and supports: weights, mode, settings."""

    @property
    def trained(self) -> bool:
        """False where the weights were never trained."""

    def segment(
        self,
        queries: Sequence[Slice],
        neighbours: Sequence[Neighbours],
        support: Supports,
        *,
        classes: Sequence[int] | None = None,
        volumes: Sequence[int] | None = None,
        keep_logits: bool = True,
    ) -> list[Segmentation]:
        """Label slices.

        Args:
            queries: slices, of any sizes.
            neighbours: for each query its support slices.
            support: where they are looked up.
            classes: class values to segment; None: all of the support set.
            volumes: how many of the queries, which then come volume by volume and in the order of the slices, each
                volume holds; None: no two queries are neighbouring slices. It changes nothing unless
                ``SegmentationSettings.volume_memories`` is set.
            keep_logits: return raw logits too.

        Returns:
            One segmentation a query, in order.

        Raises:
            SupportError: no supports, too few, unknown classes, or a mask that does not fit its image.
            PixelError: NaN or infinite pixels.
            SettingsError: volumes that do not add up to the queries.
        """


def split_volumes(count: int, volumes: Sequence[int] | None) -> list[range]:
    """Return the positions of each volume's slices among the queries.

    Args:
        count: queries.
        volumes: slices of each volume, in order; None: every query stands alone.

    Raises:
        SettingsError: volumes without slices, or volumes that do not add up to the queries.
    """
    if volumes is None:
        return [range(row, row + 1) for row in range(count)]
    if any(length < 1 for length in volumes) or sum(volumes) != count:
        raise SettingsError(
            f"volumes of {list(volumes)} slices do not make up {count} queries; give each volume's number of slices"
        )
    ends = list(accumulate(volumes))
    return [range(end - length, end) for end, length in zip(ends, volumes, strict=True)]


def check_request(
    queries: Sequence[Slice], neighbours: Sequence[Neighbours], support: Supports, classes: Sequence[int] | None
) -> list[int]:
    """Refuse requests that cannot be served and return the class values to segment, ascending.

    Raises:
        SupportError: see :meth:`Segmenter.segment`.
    """
    if len(support) == 0:
        raise SupportError("the support set is empty; give labelled slices that hold at least one class")
    if len(queries) != len(neighbours):
        raise SupportError(f"{len(queries)} queries came with neighbours for {len(neighbours)}; give one list a query")
    known = sorted(support.classes)
    if not known:
        raise SupportError("the support set has no classes; its label maps hold nothing but background")
    wanted = known if classes is None else sorted(set(classes))
    if missing := [value for value in wanted if value not in support.classes]:
        raise SupportError(f"no support slice has class {missing[0]}; the support set's classes are {known}")
    for row, found in enumerate(neighbours):
        indices = np.asarray(found.indices)
        if len(indices) == 0:
            raise SupportError(f"query {row} has no neighbours; retrieve at least one support slice for it")
        if len(indices) > len(support):
            raise SupportError(
                f"query {row} asks for k = {len(indices)} supports, but the support set has {len(support)}; lower k"
            )
        if indices.min() < 0 or indices.max() >= len(support):
            raise SupportError(
                f"query {row} names support slice {int(indices.max())}, but the support set has {len(support)}; "
                "search the index that belongs to this support set"
            )
    return wanted


def read_support(support: Supports, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return image and label map of one support slice.

    Raises:
        SupportError: their sizes differ.
    """
    image, mask = support.image(index), support.mask(index)
    if image.shape[:2] != mask.shape:
        raise SupportError(
            f"support slice '{support.ids[index]}' has an image of {image.shape[:2]} but a mask of {mask.shape}; "
            "resample the mask onto the image's grid"
        )
    return image, mask

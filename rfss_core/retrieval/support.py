"""The support set: labelled slices to retrieve from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rfss_core.digest import digest_array, digest_json
from rfss_core.embedding.slices import Slice, as_slice
from rfss_core.errors import CaseError, SupportError
from rfss_core.retrieval.cache import ArrayCache
from rfss_core.retrieval.draw import draw_evenly
from rfss_core.retrieval.vectors import unit_vectors

Mask = npt.NDArray[np.uint8]
"""uint8 [H, W]; 0 is the background."""

CACHE_BYTES = 512 * 2**20
"""Default bound on the pixels and on the masks that a support set keeps in memory."""


class SupportSet:
    """Labelled slices with their patients, class names and, once computed, embeddings.

    Images and masks are read when they are asked for and kept in caches that are bounded in bytes, so a set may be
    larger than memory. Library users build one with :meth:`from_arrays`.

    Args:
        ids: one distinct name a slice.
        patients: the patient of each slice.
        classes: name of each label value (1 to 255).
        read_image: returns slice i as float32 [H, W] or [H, W, 3] in [0, 1].
        read_mask: returns the label map of slice i as uint8 [H, W].
        class_presence: bool [N, C], whether slice i holds the c-th class in the order of :attr:`class_values`. None:
            found by reading all masks when first asked for.
        item_digests: sha256 of each slice's image and mask. None: computed by reading when first asked for.
        embeddings: [N, D], see :meth:`with_embeddings`.
        metadata: one row a slice, with the columns that a filter may ask for.
        cache_bytes: bound on the images, and again on the masks and on the patch tokens, that are kept in memory.

    Raises:
        SupportError: an empty set, lengths that differ, repeated ids, or no class.
    """

    def __init__(
        self,
        ids: Sequence[str],
        patients: Sequence[str],
        classes: Mapping[int, str],
        read_image: Callable[[int], npt.NDArray[Any]],
        read_mask: Callable[[int], npt.NDArray[Any]],
        *,
        class_presence: npt.ArrayLike | None = None,
        item_digests: Sequence[str] | None = None,
        embeddings: npt.ArrayLike | None = None,
        metadata: pd.DataFrame | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.ids = list(ids)
        self.patients = list(patients)
        self.classes = dict(sorted((int(value), str(name)) for value, name in classes.items()))
        if not self.ids:
            raise SupportError("the support set is empty; label at least one slice")
        if not self.classes:
            raise SupportError("the support set has no class; its masks need at least one value above 0")
        if any(not 1 <= value <= 255 for value in self.classes):
            raise SupportError(f"class values go from 1 to 255, got {list(self.classes)}; 0 is the background")
        self._check_length("patients", len(self.patients))
        if len(set(self.ids)) != len(self.ids):
            repeated = next(name for name in self.ids if self.ids.count(name) > 1)
            raise SupportError(f"support id '{repeated}' appears more than once; give each slice a name of its own")
        self._presence = self._checked_presence(class_presence)
        if item_digests is not None:
            self._check_length("item_digests", len(item_digests))
        self._digests: list[str | None] = list(item_digests) if item_digests is not None else [None] * len(self.ids)
        self._rows = np.arange(len(self.ids), dtype=np.int64)
        self._images = ArrayCache(read_image, cache_bytes)
        self._masks = ArrayCache(read_mask, cache_bytes)
        self.metadata = pd.DataFrame(index=range(len(self.ids)))
        if metadata is not None:
            self._check_length("rows of metadata", len(metadata))
            self.metadata = metadata.reset_index(drop=True)
        self._patches: ArrayCache | None = None
        self._cache_bytes = cache_bytes
        self._embeddings: npt.NDArray[np.float32] | None = None
        if embeddings is not None:
            self._embeddings = self._checked_embeddings(embeddings)

    @classmethod
    def from_arrays(
        cls,
        images: Sequence[npt.ArrayLike] | npt.NDArray[Any],
        masks: Sequence[npt.ArrayLike] | npt.NDArray[Any],
        patients: Sequence[str] | None = None,
        classes: Mapping[int, str] | None = None,
        ids: Sequence[str] | None = None,
        metadata: pd.DataFrame | None = None,
    ) -> SupportSet:
        """Build a support set from arrays in memory.

        Args:
            images: slices [H, W] or [H, W, 3]; floats in [0, 1], or uint8. Shapes may differ between slices.
            masks: label map [H, W] of each image; bool or integers from 0 (background) to 255.
            patients: patient of each slice, so that a query never meets its own patient. Default: every slice is its
                own patient.
            classes: name of each label value. Default: ``class <value>`` for the values found.
            ids: distinct name of each slice. Default: ``slice-0000`` and so on.
            metadata: one row a slice, with the columns that a filter may ask for.

        Returns:
            The support set, without embeddings.

        Raises:
            SupportError: empty, of differing lengths, image and mask of different shapes, float or negative masks,
                NaN or unscaled pixels, label values that ``classes`` does not name, or no label at all.
        """
        if len(images) != len(masks):
            raise SupportError(f"{len(images)} images but {len(masks)} masks were given; each image needs its mask")
        names = list(ids) if ids is not None else [f"slice-{row:04d}" for row in range(len(images))]
        if len(names) != len(images):
            raise SupportError(f"{len(images)} images but {len(names)} ids were given; each image needs one")
        plain_images = [_support_image(image, name) for image, name in zip(images, names, strict=True)]
        plain_masks = [_support_mask(mask, name) for mask, name in zip(masks, names, strict=True)]
        for name, image, mask in zip(names, plain_images, plain_masks, strict=True):
            if image.shape[:2] != mask.shape:
                raise SupportError(
                    f"support slice '{name}' is {image.shape[:2]} but its mask is {mask.shape}; they must match"
                )
        found = [np.unique(mask[mask > 0]) for mask in plain_masks]
        values = sorted({int(value) for row in found for value in row})
        known = dict(classes) if classes is not None else {value: f"class {value}" for value in values}
        if plain_images and not values:
            raise SupportError("no mask of the support set labels anything; give masks with values above 0")
        unnamed = [value for value in values if value not in known]
        if unnamed:
            raise SupportError(
                f"the masks hold {unnamed}, which classes {known} does not name; name them or set them to 0"
            )
        return cls(
            names,
            list(patients) if patients is not None else names,
            known,
            plain_images.__getitem__,
            plain_masks.__getitem__,
            class_presence=[[value in row for value in sorted(known)] for row in found],
            metadata=metadata,
            # The arrays are in memory already.
            cache_bytes=0,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def class_values(self) -> tuple[int, ...]:
        """Label values in rising order: the order of all per-class arrays."""
        return tuple(self.classes)

    @property
    def embeddings(self) -> npt.NDArray[np.float32] | None:
        """L2-normalised float32 [N, D], or None before :meth:`with_embeddings`."""
        return self._embeddings

    @property
    def digest(self) -> str:
        """Digest of ids, patients, class names, images and masks: part of a run's fingerprint."""
        rows = [[name, patient, self.item_digest(i)] for i, (name, patient) in enumerate(self._named_rows())]
        return digest_json({"classes": {str(value): name for value, name in self.classes.items()}, "slices": rows})

    @cached_property
    def class_presence(self) -> npt.NDArray[np.bool_]:
        """Whether each slice holds each class of :attr:`class_values`: bool [N, C]."""
        if self._presence is not None:
            return self._presence
        found = [np.unique(self.mask(i)) for i in range(len(self))]
        return np.array([[value in row for value in self.class_values] for row in found], dtype=np.bool_)

    def image(self, i: int) -> Slice:
        """Return slice i: float32 [H, W] or [H, W, 3] in [0, 1]; a copy."""
        return self._images[int(self._rows[i])]

    def mask(self, i: int) -> Mask:
        """Return the label map of slice i: uint8 [H, W]; a copy."""
        return self._masks[int(self._rows[i])]

    def item_digest(self, i: int) -> str:
        """Return the sha256 of slice i's image and mask, the key of memory banks."""
        known = self._digests[i]
        if known is None:
            known = digest_json([digest_array(self.image(i)), digest_array(self.mask(i))])
            self._digests[i] = known
        return known

    def with_embeddings(self, embeddings: npt.ArrayLike) -> SupportSet:
        """Return the same slices with embeddings [N, D], which are L2-normalised again (they may be stored float16).

        Raises:
            SupportError: not [N, D], not finite, or a vector of length zero.
        """
        result = self.subset(range(len(self)))
        result._embeddings = self._checked_embeddings(embeddings)  # noqa: SLF001
        return result

    def with_patches(self, read: Callable[[int], npt.NDArray[Any]]) -> SupportSet:
        """Return the same slices with patch tokens, which strategy ``region`` compares.

        Args:
            read: returns the L2-normalised patch tokens of slice i of this set, [h, w, D], float16 or wider.
        """
        result = self.subset(range(len(self)))
        rows = {int(row): i for i, row in enumerate(self._rows)}
        result._patches = ArrayCache(lambda row: read(rows[row]), self._cache_bytes)  # noqa: SLF001
        return result

    @property
    def has_patches(self) -> bool:
        """Whether :meth:`with_patches` gave the slices patch tokens."""
        return self._patches is not None

    def patches(self, i: int) -> npt.NDArray[Any]:
        """Return the L2-normalised patch tokens of slice i, [h, w, D]; a copy.

        Raises:
            SupportError: the set has none.
        """
        if self._patches is None:
            raise SupportError("the support set has no patch tokens; add them with with_patches(...)")
        return self._patches[int(self._rows[i])]

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> SupportSet:
        """Return the slices at ``indices``, in that order; readers and caches are shared with this set.

        Raises:
            SupportError: no indices are left.
        """
        rows = np.asarray(indices, dtype=np.int64)
        result = SupportSet(
            [self.ids[i] for i in rows],
            [self.patients[i] for i in rows],
            self.classes,
            self.image,
            self.mask,
            class_presence=None if self._presence is None else self._presence[rows],
            metadata=self.metadata.iloc[rows],
            cache_bytes=self._cache_bytes,
        )
        result._rows = self._rows[rows]
        result._images, result._masks, result._patches = self._images, self._masks, self._patches
        result._digests = [self._digests[i] for i in rows]
        result._embeddings = None if self._embeddings is None else self._embeddings[rows]
        return result

    def draw(self, n: int, seed: int) -> npt.NDArray[np.int64]:
        """Choose n slices evenly over patients: one of each patient in turn, until n are drawn.

        The choice depends on ids, patients and seed alone, not on the order of the slices, and drawing again from what
        was drawn changes nothing.

        Args:
            n: slices to draw; all are drawn where there are fewer.
            seed: another seed, another draw.

        Returns:
            int64 indices in rising order.
        """
        if n < 1:
            raise SupportError(f"at least 1 support slice has to be drawn, got {n}")
        return np.sort(draw_evenly(self.ids, self.patients, n, seed))

    def sample(self, n: int, seed: int) -> SupportSet:
        """Return the subset that :meth:`draw` chooses."""
        return self.subset(self.draw(n, seed))

    def _named_rows(self) -> list[tuple[str, str]]:
        return list(zip(self.ids, self.patients, strict=True))

    def _check_length(self, what: str, length: int) -> None:
        if length != len(self.ids):
            raise SupportError(f"{len(self.ids)} support slices but {length} {what}; give one for each slice")

    def _checked_presence(self, presence: npt.ArrayLike | None) -> npt.NDArray[np.bool_] | None:
        if presence is None:
            return None
        array = np.asarray(presence, dtype=np.bool_)
        expected = (len(self.ids), len(self.classes))
        if array.shape != expected:
            raise SupportError(f"class_presence has shape {array.shape}, expected {expected} (slices, classes)")
        return array

    def _checked_embeddings(self, embeddings: npt.ArrayLike) -> npt.NDArray[np.float32]:
        array = np.asarray(embeddings)
        if array.ndim != 2 or len(array) != len(self.ids) or array.shape[1] == 0:
            raise SupportError(f"embeddings have shape {array.shape}; expected [{len(self.ids)}, D]")
        vectors, bad = unit_vectors(array)
        if bad.size:
            raise SupportError(
                f"the embedding of support slice '{self.ids[int(bad[0])]}' is not finite or is zero; embed it again"
            )
        return vectors


def _support_image(image: npt.ArrayLike, name: str) -> Slice:
    try:
        # A copy: the digest of a slice is kept, so its pixels must not change under it.
        return np.array(as_slice(image, f"support slice '{name}'"))
    except CaseError as error:
        raise SupportError(str(error)) from error


def _support_mask(mask: npt.ArrayLike, name: str) -> Mask:
    array: npt.NDArray[Any] = np.asarray(mask)
    if array.dtype.kind not in "bui":
        raise SupportError(f"the mask of support slice '{name}' has dtype {array.dtype}; give class values as integers")
    if array.ndim != 2 or array.size == 0:
        raise SupportError(f"the mask of support slice '{name}' has shape {array.shape}; expected [H, W]")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise SupportError(
            f"the mask of support slice '{name}' holds values from {low} to {high}; allowed are 0 to 255"
        )
    return array.astype(np.uint8)

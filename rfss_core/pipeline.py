"""Retrieve and segment from Python, without a workspace or an orchestrator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rfss_core.digest import digest_array
from rfss_core.embedding import Dinov2Embedder, load_embedder
from rfss_core.embedding.slices import as_slice
from rfss_core.errors import SettingsError, SupportError
from rfss_core.presets import PRESETS
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.segmentation import Segmenter, load_segmenter
from rfss_core.settings import EmbeddingSettings, PresetName, RetrievalSettings, SegmentationSettings, readable


class PipelineSettings(BaseModel):
    """What a :class:`FewShotSegmenter` depends on: the scientific part of ``LabelSettings``."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    preset: PresetName = Field("tiny", description="Named pair of models and settings.")
    k: int | None = Field(None, ge=1, le=256, description="Support slices retrieved per query. Default: the preset's.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of random retrieval and of the draw of support slices.")
    embedding: EmbeddingSettings = Field(
        default_factory=EmbeddingSettings, description="Which DINOv2 describes a slice."
    )
    retrieval: RetrievalSettings = Field(
        default_factory=RetrievalSettings, description="Which labelled slices serve a query."
    )
    segmentation: SegmentationSettings = Field(
        default_factory=SegmentationSettings, description="How memories become masks. Its device serves both models."
    )


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented slice and where its mask came from.

    Attributes:
        labels: uint8 [H, W] on the query's own grid; 0 is the background, others as in the support set's classes.
        neighbours: rows of the support set that served the query, with their distances.
        support_ids: ids of those rows.
        object_score: float32 [C], the segmenter's score that each class is in the slice, classes in rising order.
        predicted_iou: float32 [C], the segmenter's own estimate of each mask's quality.
    """

    labels: npt.NDArray[np.uint8]
    neighbours: Neighbours
    support_ids: list[str]
    object_score: npt.NDArray[np.float32]
    predicted_iou: npt.NDArray[np.float32]


class FewShotSegmenter:
    """Segments slices like those of a support set, without training.

    Args:
        settings: preset, models, retrieval and segmentation. The models load at once.

    Raises:
        ModelNotFoundError: a model is neither on this machine nor within reach.
        ModelError: weights or a configuration that cannot be used.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        preset = PRESETS[settings.preset]
        self.settings = settings
        self.k = settings.k or preset.k
        self.embedder: Dinov2Embedder = load_embedder(settings.embedding, preset, settings.segmentation.device)
        self.segmenter: Segmenter = load_segmenter(settings.segmentation, preset)
        self._support: SupportSet | None = None
        self._retriever: Retriever | None = None

    @classmethod
    def from_preset(cls, preset: PresetName = "tiny", **overrides: Any) -> FewShotSegmenter:
        """Load the models of a preset.

        Args:
            preset: ``tiny``, ``fast``, ``paper`` or ``best``.
            **overrides: fields of :class:`PipelineSettings`, for example ``k=4`` or
                ``segmentation={"device": "cpu"}``.

        Returns:
            A segmenter that still needs :meth:`fit`.

        Raises:
            SettingsError: an unknown preset or field, or a value out of bounds.
            ModelNotFoundError: a model is neither on this machine nor within reach.
        """
        try:
            return cls(PipelineSettings.model_validate({"preset": preset, **overrides}))
        except ValidationError as error:
            raise SettingsError(readable(error)) from error

    @property
    def support(self) -> SupportSet:
        """The fitted support set, with embeddings.

        Raises:
            SupportError: before :meth:`fit`.
        """
        return self._fitted()[0]

    def fit(self, support: SupportSet) -> FewShotSegmenter:
        """Embed and index a support set; nothing is trained.

        Args:
            support: labelled slices. Embeddings it already has are taken as this embedder's own.

        Returns:
            This segmenter.

        Raises:
            SupportError: the embeddings it already has cannot be this embedder's.
            SettingsError: a filter on a column or class that the support set does not have.
        """
        limit = self.settings.retrieval.support_slices
        if limit is not None:
            support = support.sample(limit, self.settings.seed)
        if support.embeddings is None:
            step = self.embedder.batch_size
            parts = [
                self.embedder.embed([support.image(i) for i in range(start, min(start + step, len(support)))])
                for start in range(0, len(support), step)
            ]
            support = support.with_embeddings(np.concatenate(parts))
        elif support.embeddings.shape[1] != self.embedder.dim:
            raise SupportError(
                f"the support set's embeddings have {support.embeddings.shape[1]} components, but "
                f"'{self.embedder.name}' makes {self.embedder.dim}; build the set without embeddings"
            )
        if self.settings.retrieval.needs_patches and not support.has_patches:
            tokens = [self._patches([support.image(i)])[0] for i in range(len(support))]
            support = support.with_patches(tokens.__getitem__)
        self._retriever = Retriever(support, self.settings.retrieval, self.settings.seed)
        self._support = support
        return self

    def segment(
        self,
        image: npt.ArrayLike,
        k: int | None = None,
        patient: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Result:
        """Segment one slice.

        Args:
            image: [H, W] or [H, W, 3]; floats in [0, 1], or uint8.
            k: support slices to retrieve. Default: the settings', else the preset's.
            patient: the slice's patient, whose own support slices are then not used.
            metadata: the slice's values of the columns that ``retrieval.filter.match`` compares.

        Returns:
            The label map and its provenance.

        Raises:
            SupportError: before :meth:`fit`.
            TooFewSupportsError: patient and filter leave fewer slices than the k that was asked for, here or in the
                settings, or none (the preset's k is a wish: what is left serves).
            GeometryError: the image is not one slice.
            PixelError: NaN, infinite or unscaled pixels.
        """
        own = None if metadata is None else [metadata]
        return self.segment_many([image], k=k, patients=[patient], metadata=own)[0]

    def segment_many(
        self,
        images: Sequence[npt.ArrayLike],
        k: int | None = None,
        patients: Sequence[str | None] | None = None,
        volumes: Sequence[int] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Result]:
        """Segment slices in batches, sharing the memories of support slices that serve several of them.

        Args:
            images: slices, see :meth:`segment`; shapes may differ.
            k: support slices to retrieve. Default: the settings', else the preset's.
            patients: patient of each slice, or None. Default: none are known.
            volumes: slices of each volume, where the images are whole volumes one after another; only
                ``segmentation.volume_memories`` looks at it.
            metadata: each slice's values of the columns that ``retrieval.filter.match`` compares.

        Returns:
            One result an image, in order.

        Raises:
            SupportError: before :meth:`fit`.
            TooFewSupportsError: see :meth:`segment`.
            GeometryError: an image is not one slice.
            PixelError: NaN, infinite or unscaled pixels.
            SettingsError: k below 1, or as many patients as images were not given, or volumes that do not
                add up to the images.
        """
        support, retriever = self._fitted()
        slices = [as_slice(image, f"image {i}") for i, image in enumerate(images)]
        if not slices:
            return []
        owners = list(patients) if patients is not None else [None] * len(slices)
        # The content names a query, so that a random draw does not depend on its place in the list.
        names = [digest_array(image) for image in slices]
        asked = self.settings.k if k is None else k
        neighbours = retriever.search(
            self.embedder.embed(slices),
            names,
            owners,
            self.k if k is None else k,
            metadata=metadata,
            patches=self._patches(slices) if self.settings.retrieval.needs_patches else None,
            fewer=asked is None,
        )
        segmented = self.segmenter.segment(slices, neighbours, support, volumes=volumes, keep_logits=False)
        return [
            Result(
                labels=segmentation.labels,
                neighbours=found,
                support_ids=[support.ids[int(row)] for row in found.indices],
                object_score=segmentation.object_score,
                predicted_iou=segmentation.predicted_iou,
            )
            for found, segmentation in zip(neighbours, segmented, strict=True)
        ]

    def _patches(self, slices: Sequence[npt.ArrayLike]) -> list[npt.NDArray[np.float16]]:
        return [tokens.astype(np.float16) for tokens in self.embedder.embed_patches(slices)]

    def _fitted(self) -> tuple[SupportSet, Retriever]:
        if self._support is None or self._retriever is None:
            raise SupportError("there is no support set yet; call fit(support) first")
        return self._support, self._retriever

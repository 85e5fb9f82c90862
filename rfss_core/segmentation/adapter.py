"""The interface between the engine and the modules of a SAM 2 network, whoever wrote those modules.

The data flow is that of ``SAM2VideoPredictor`` (Ravi et al., "SAM 2: Segment Anything in Images and Videos",
arXiv:2408.00714; code facebookresearch/sam2), cut where memories can be kept: image -> features, features + mask ->
memory, features + memories -> conditioned features, conditioned features -> masks.

Letters in shapes: B batch, N side of the square network input, S = N / 16 side of its feature grid, D width of the
network (256), M width of a memory (64).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Traits:
    """What the engine must know about a network, read from its configuration."""

    image_size: int
    """N: side of the square input, pixels."""
    grid: int
    """S: side of the feature grid that memories and attention live on."""
    hidden_dim: int
    """D: width of features and object pointers."""
    memory_dim: int
    """M: width of spatial memories and of pointer tokens."""
    heads: int
    """Heads of the memory attention."""
    rope_theta: float
    """Base of the rotary position code."""
    pointer_positions: bool
    """SAM 2.1: pointers carry a code of their distance in frames. SAM 2.0: they carry none."""
    max_pointers: int
    """Frames over which that distance is normalised, at most."""
    multimask: bool
    """Decode three masks and keep the one with the highest predicted IoU; else the decoder's single-mask path."""


@dataclass(frozen=True)
class ImageFeatures:
    """What the image encoder says about a batch of images."""

    coarse: Tensor
    """[B, D, S, S], stride 16."""
    middle: Tensor
    """[B, D / 4, 2 S, 2 S], stride 8, after the decoder's ``conv_s1``."""
    fine: Tensor
    """[B, D / 8, 4 S, 4 S], stride 4, after the decoder's ``conv_s0``."""

    def __len__(self) -> int:
        return len(self.coarse)

    def take(self, rows: Tensor) -> ImageFeatures:
        """Return the features of these rows, in this order.

        Args:
            rows: int64 [n], rows of the batch; may repeat.
        """
        return ImageFeatures(self.coarse[rows], self.middle[rows], self.fine[rows])

    @classmethod
    def join(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Return the features of several batches as one batch."""
        return cls(
            torch.cat([part.coarse for part in parts]),
            torch.cat([part.middle for part in parts]),
            torch.cat([part.fine for part in parts]),
        )


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says about a batch."""

    logits: Tensor
    """float32 [B, 4 S, 4 S], not gated by the object score."""
    predicted_iou: Tensor
    """float32 [B] in [0, 1]."""
    object_score: Tensor
    """float32 [B], a logit: above 0 the object is there."""
    token: Tensor
    """[B, D]: output token of the chosen mask, from which object pointers are made."""

    def row(self, position: int) -> Decoded:
        """Return one row of the batch, as a batch of one."""
        part = slice(position, position + 1)
        return Decoded(self.logits[part], self.predicted_iou[part], self.object_score[part], self.token[part])


@dataclass(frozen=True)
class AttentionWeights:
    """The four projections of one attention."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear

    @classmethod
    def of(cls, module: Any, out: str) -> AttentionWeights:
        """Read them off an attention module, whose output projection is called ``out``."""
        return cls(module.q_proj, module.k_proj, module.v_proj, getattr(module, out))


@dataclass(frozen=True)
class LayerWeights:
    """One layer of the memory attention (pre-norm: self-attention, cross-attention, feed-forward with ReLU)."""

    self_attention: AttentionWeights
    cross_attention: AttentionWeights
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm
    linear1: nn.Linear
    linear2: nn.Linear
    activation: nn.Module

    @classmethod
    def of(cls, layer: Any, activation: nn.Module, *, norm: str, out: str) -> LayerWeights:
        """Read them off a layer.

        Args:
            layer: of either package; they differ in two names.
            activation: of the feed-forward part.
            norm: what the layer's norms are called, without their number.
            out: what the output projections are called.
        """
        return cls(
            self_attention=AttentionWeights.of(layer.self_attn, out),
            cross_attention=AttentionWeights.of(layer.cross_attn_image, out),
            norm1=getattr(layer, f"{norm}1"),
            norm2=getattr(layer, f"{norm}2"),
            norm3=getattr(layer, f"{norm}3"),
            linear1=layer.linear1,
            linear2=layer.linear2,
            activation=activation,
        )


@dataclass(frozen=True)
class MemoryAttentionWeights:
    """All parameters of the memory attention."""

    layers: tuple[LayerWeights, ...]
    norm: nn.LayerNorm
    temporal_positions: Tensor
    """[T, M] (``maskmem_tpos_enc``): entry d - 1 marks the memory of the frame d frames back, the last entry every
    conditioning memory."""
    image_position: Tensor
    """[S * S, D]: sine code of the query's features."""
    memory_position: Tensor
    """[S * S, M]: sine code of a memory."""
    pointer_position: nn.Module
    """[..., D] -> [..., M]: projection of a pointer's sine code (SAM 2.1), identity for SAM 2.0."""


class Sam2Adapter(ABC):
    """One SAM 2 network behind the five operations that the engine needs; all run without gradients.

    Args:
        network: all parameters; it is moved to ``device`` and ``dtype`` and put into evaluation mode.
        device: where it computes.
        dtype: its arithmetic.
        exact: modules and their buffers that keep float32: the frequencies of position codes, whose angles grow to many
            turns, so that half precision would lose the place.
    """

    traits: Traits
    memory_attention: MemoryAttentionWeights
    image_encoder: nn.Module
    """What :meth:`encode_image` spends its time in."""
    pointer_head: nn.Module
    """[B, D] -> [B, D]: output tokens to object pointers."""
    no_object_pointer: Tensor
    """[1, D]: the pointer of an object that is not there."""
    no_memory_embedding: Tensor
    """[D]: added to coarse features that no memory conditions (point prompts on a single image)."""

    def __init__(
        self, network: nn.Module, device: torch.device, dtype: torch.dtype, exact: Sequence[tuple[nn.Module, str]]
    ) -> None:
        kept = [(module, name, getattr(module, name).detach().float().clone()) for module, name in exact]
        network.to(device=device, dtype=dtype).eval().requires_grad_(requires_grad=False)
        for module, name, buffer in kept:
            setattr(module, name, buffer.to(device))
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        """Run the image encoder.

        Args:
            pixels: [B, 3, N, N], standardised with the ImageNet statistics, of the adapter's dtype and device.
        """

    @abstractmethod
    def encode_memory(self, coarse: Tensor, mask_logits: Tensor, present: Tensor) -> Tensor:
        """Run the memory encoder.

        Args:
            coarse: [B, D, S, S] features of the support slices.
            mask_logits: [B, 1, N, N]: 20 m - 10 for a mask m in [0, 1].
            present: bool [B]: whether the object is in the slice; where it is not, SAM 2.1 adds
                ``no_obj_embed_spatial``.

        Returns:
            [B, M, S, S] spatial memories.
        """

    @abstractmethod
    def prompt_mask(self, mask: Tensor) -> Tensor:
        """Turn masks into dense prompts: ``mask_downsample``, then the prompt encoder's mask embedding.

        Args:
            mask: [B, 1, N, N] in [0, 1].

        Returns:
            [B, D, S, S] dense prompt embeddings.
        """

    @abstractmethod
    def embed_points(self, coordinates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the prompt encoder without a mask.

        Args:
            coordinates: float32 [B, P, 2].
            labels: int [B, P].

        Returns:
            Sparse embeddings and the dense embedding that says "no mask", in the shapes that :meth:`predict_masks`
            takes.
        """

    @abstractmethod
    def predict_masks(
        self, features: ImageFeatures, conditioned: Tensor, sparse: Tensor, dense: Tensor, *, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the mask decoder.

        Args:
            features: of the B images; the finer levels are used.
            conditioned: [B, D, S, S].
            sparse: from :meth:`embed_points`.
            dense: [B, D, S, S].
            multimask: see :meth:`decode`.

        Returns:
            Masks [B, m, 4 S, 4 S], predicted IoU [B, m], tokens [B, m or 1, D] and object scores [B, 1].
        """

    @torch.inference_mode()
    def decode(
        self,
        features: ImageFeatures,
        conditioned: Tensor,
        *,
        multimask: bool,
        dense_prompt: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
    ) -> Decoded:
        """Run the prompt encoder and the mask decoder.

        Args:
            features: of the B images; the finer levels are used.
            conditioned: [B, D, S, S]: coarse features, conditioned on memories or not.
            multimask: three masks, of which the one with the highest predicted IoU is returned; else the single-mask
                path, which follows the configuration's ``dynamic_multimask_via_stability``.
            dense_prompt: [B, D, S, S] from :meth:`prompt_mask`; None: the learned no-mask embedding.
            points: coordinates float [B, P, 2] (x, y in pixels of the N x N input) and labels int [B, P] (1 positive,
                0 negative, -1 not a point); None: no points.
        """
        if points is None:
            # One point that is none, to which the prompt encoder adds another, as in the official predictor.
            shape = (len(conditioned), 1)
            points = (
                torch.zeros(*shape, 2, device=self.device),
                torch.full(shape, -1, device=self.device, dtype=torch.int32),
            )
        sparse, no_mask = self.embed_points(points[0].float(), points[1])
        dense = no_mask if dense_prompt is None else dense_prompt
        masks, iou, tokens, score = self.predict_masks(
            features, conditioned, sparse.to(self.dtype), dense, multimask=multimask
        )
        return choose_best(masks, iou, tokens, score)

    @torch.inference_mode()
    def project_pointer(self, token: Tensor) -> Tensor:
        """Turn output tokens [B, D] into object pointers [B, D]."""
        pointer: Tensor = self.pointer_head(token)
        return pointer

    def encode_pointer(self, features: ImageFeatures, mask: Tensor, present: Tensor) -> Tensor:
        """Return the object pointers of support slices.

        As ``SAM2Base._use_mask_as_output``: the decoder sees the raw coarse features with the mask as prompt, keeps
        mask token 0, and the learned no-object pointer replaces the result if the decoder's object score or the mask
        itself says absent.

        Args:
            features: of the B support slices.
            mask: [B, 1, N, N] in [0, 1].
            present: bool [B].

        Returns:
            [B, D].
        """
        decoded = self.decode(features, features.coarse, multimask=False, dense_prompt=self.prompt_mask(mask))
        return self.choose_pointer(decoded.token, (decoded.object_score > 0) & present)

    def choose_pointer(self, token: Tensor, shown: Tensor) -> Tensor:
        """Return object pointers [B, D] of output tokens [B, D]; the no-object pointer where ``shown`` [B] is False."""
        pointer = self.project_pointer(token)
        weight = shown[:, None].to(pointer.dtype)
        return weight * pointer + (1 - weight) * self.no_object_pointer


def choose_best(masks: Tensor, predicted_iou: Tensor, tokens: Tensor, object_score: Tensor) -> Decoded:
    """Keep, of each image's candidate masks, the one with the highest predicted IoU.

    Args:
        masks: [B, m, 4 S, 4 S].
        predicted_iou: [B, m].
        tokens: [B, m or 1, D]: one token a mask, or one for all.
        object_score: [B, 1].
    """
    best = predicted_iou.argmax(dim=-1)
    rows = torch.arange(len(best), device=best.device)
    token = tokens[rows, best] if tokens.shape[1] > 1 else tokens[:, 0]
    return Decoded(masks[rows, best].float(), predicted_iou[rows, best].float(), object_score[:, 0].float(), token)

"""SAM 2 memory conditioning of a whole group at once: each image is the query of the others.

The function is the one of :mod:`rfss_core.segmentation` (memories of native masks, object pointers, memory attention
whose rotary code restarts with each memory, decoder without a prompt); tests hold the two together. Only the order
of work differs: the keys and values of a group are computed once and shared by all its queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam2_video.modeling_sam2_video import apply_rotary_pos_emb_2d

from rfss_core.segmentation.attention import sine_code

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """What the image encoder says about B images of S x S pixels."""

    fine: tuple[Tensor, Tensor]
    """Stride 4 [B, C / 8, S/4, S/4] and stride 8 [B, C / 4, S/8, S/8], after the decoder's 1 x 1 convolutions."""
    coarse: Tensor
    """Stride 16 [B, C, S/16, S/16], without the no-memory embedding."""
    position: Tensor
    """Sine code of the coarse grid [1, C, S/16, S/16]."""


@dataclass(frozen=True)
class Memories:
    """Memories of B supports with one class each."""

    tokens: Tensor
    """[B, N, 64], N = (S/16)^2."""
    pointers: Tensor | None
    """[B, C]."""
    pointer_scores: Tensor | None
    """Object score [B] that the decoder gave the support itself."""


@dataclass(frozen=True)
class Answer:
    """What the decoder says about B queries."""

    logits: Tensor
    """[B, 3, S/4, S/4]."""
    iou: Tensor
    """Predicted IoU of the three masks [B, 3]."""
    object_score: Tensor
    """[B], above 0 where the class is present."""
    propagated: Tensor
    """[B, layers, N]: share of attention that fell on foreground, the label that each layer propagates."""

    def best(self) -> Tensor:
        """Return the logits [B, S/4, S/4] of the mask with the highest predicted IoU."""
        return self.logits[torch.arange(len(self.logits), device=self.logits.device), self.iou.argmax(1)]


class InContextSam2(nn.Module):
    """Training forward over the modules of a ``Sam2VideoModel``.

    Args:
        model: the transformers model; its ``image_size`` is S.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Features:
        """Encode grey images [B, S, S] in [0, 1]."""
        model = self.model
        pixels = (images[:, None].expand(-1, 3, -1, -1) - self.mean) / self.std
        output = model.vision_encoder(pixels)
        fine, middle, coarse = output.fpn_hidden_states
        return Features(
            (model.mask_decoder.conv_s0(fine), model.mask_decoder.conv_s1(middle)),
            coarse,
            output.fpn_position_encoding[-1][:1],
        )

    def remember(self, features: Features, masks: Tensor, pointers: bool = True) -> Memories:
        """Encode supports with their masks [B, S, S] of 0 and 1 into memories."""
        model = self.model
        config = model.config
        scaled = masks[:, None] * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        tokens, _ = model.memory_encoder(features.coarse, scaled)
        absent = (masks.flatten(1).amax(1) <= 0).to(tokens.dtype)
        if model.occlusion_spatial_embedding_parameter is not None:
            tokens = tokens + absent[:, None, None, None] * model.occlusion_spatial_embedding_parameter[..., None, None]
        tokens = tokens.flatten(2).transpose(1, 2)
        if not pointers:
            return Memories(tokens, None, None)
        prompt = model.prompt_encoder.mask_embed(model.mask_downsample(masks[:, None]))
        _, _, sam_tokens, scores = self._decoder(features.coarse, features, prompt, multimask=False)
        pointer = model.object_pointer_proj(sam_tokens[:, 0, 0])
        present = (scores[:, 0] > 0).to(pointer.dtype) * (1 - absent[:, None])
        pointer = present * pointer + (1 - present) * model.no_object_pointer
        return Memories(tokens, pointer, scores[:, 0, 0])

    def attend(
        self, coarse: Tensor, position: Tensor, memories: Memories, allow: Tensor, offsets: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Condition queries on memories, group by group.

        Args:
            coarse: [G, q, C, h, w] query features.
            position: their sine code [1, C, h, w].
            memories: of G * n supports.
            allow: [G, q, n], True where the query may look at the support.
            offsets: [G, n] place of each support in the past, as a share of the longest, for its pointer.
            masks: [G * n, S, S]; their share of each memory token is what attention propagates.

        Returns:
            Conditioned features [G, q, C, h, w] and the propagated label [G, q, layers, N].
        """
        model = self.model
        attention = model.memory_attention
        groups, queries, channels, height, width = coarse.shape
        tokens = height * width
        supports = allow.shape[2]
        keys, key_position, pointers = self._keys(memories, groups, offsets, (height, width))
        bias = self._bias(allow, tokens, pointers // max(supports, 1), coarse.dtype)
        share = nn.functional.adaptive_avg_pool2d(masks[:, None], (height, width)).view(groups, supports * tokens, 1)
        state = (coarse + 0.1 * position[None]).flatten(3).transpose(2, 3)
        state = state.reshape(groups * queries, 1, tokens, channels)
        rotary = attention.rotary_emb(state, attention.position_ids)
        propagated = []
        for layer in attention.layers:
            normed = layer.layer_norm1(state)
            state = state + layer.self_attn(normed, normed, normed, position_embeddings=rotary)[0]
            mixed, label = self._cross(
                layer.cross_attn_image, layer.layer_norm2(state), keys, key_position, bias, rotary, supports, share
            )
            state = state + mixed
            state = state + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(state))))
            propagated.append(label)
        state = attention.layer_norm(state).view(groups, queries, tokens, channels)
        conditioned = state.transpose(2, 3).reshape(groups, queries, channels, height, width)
        return conditioned, torch.stack(propagated, 2)

    def decode(self, conditioned: Tensor, features: Features, propagated: Tensor) -> Answer:
        """Decode conditioned features [B, C, h, w] with no prompt into three masks."""
        prompt = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(conditioned)
        logits, iou, _, scores = self._decoder(conditioned, features, prompt, multimask=True)
        return Answer(logits[:, 0], iou[:, 0], scores[:, 0, 0], propagated)

    def forward(
        self, images: Tensor, masks: Tensor, allow: Tensor, offsets: Tensor, pointers: bool = True
    ) -> tuple[Answer, Memories]:
        """Segment every image of every group from the others.

        Args:
            images: [G, n, S, S] in [0, 1].
            masks: [G, n, S, S] of 0 and 1.
            allow: [G, n, n], True where the query (first) may look at the support (second).
            offsets: [G, n], see :meth:`attend`.
            pointers: whether object pointers join the memories.

        Returns:
            Answers for G * n queries, and the memories.
        """
        groups, members = images.shape[:2]
        features = self.encode(images.flatten(0, 1))
        memories = self.remember(features, masks.flatten(0, 1), pointers)
        coarse = features.coarse.view(groups, members, *features.coarse.shape[1:])
        conditioned, propagated = self.attend(coarse, features.position, memories, allow, offsets, masks.flatten(0, 1))
        return self.decode(conditioned.flatten(0, 1), features, propagated.flatten(0, 1)), memories

    def _decoder(
        self, embedding: Tensor, features: Features, prompt: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model = self.model
        count = len(embedding)
        position = model.get_image_wide_positional_embeddings().to(embedding.dtype).expand(count, -1, -1, -1)
        # No point at all is two not-a-point tokens in SAM 2: the empty point and the padding point.
        nothing = model.prompt_encoder.not_a_point_embed.weight.expand(count, 1, 2, -1)
        output: tuple[Tensor, Tensor, Tensor, Tensor] = model.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=position,
            sparse_prompt_embeddings=nothing,
            dense_prompt_embeddings=prompt,
            multimask_output=multimask,
            high_resolution_features=list(features.fine),
        )
        return output

    def _keys(
        self, memories: Memories, groups: int, offsets: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, int]:
        """Return memory and pointer tokens [G, T, 64], their position code, and the number of pointer tokens."""
        model = self.model
        tokens = memories.tokens
        sine = model.memory_encoder.position_encoding(
            torch.Size((1, tokens.shape[-1], *grid)), tokens.device, tokens.dtype
        )
        # Every conditioning frame has temporal position 0, which is the last entry.
        code = sine.flatten(2).transpose(1, 2) + model.memory_temporal_positional_encoding[-1, 0]
        keys = tokens.reshape(groups, -1, tokens.shape[-1])
        position = code.expand(groups, -1, -1).repeat(1, keys.shape[1] // code.shape[1], 1)
        if memories.pointers is None:
            return keys, position, 0
        splits = model.hidden_dim // model.mem_dim
        pointers = memories.pointers.reshape(groups, -1, model.mem_dim)
        if model.config.enable_temporal_pos_encoding_for_object_pointers:
            past = sine_code(offsets.flatten(), model.hidden_dim).view(*offsets.shape, -1).to(tokens.dtype)
            past = model.temporal_positional_encoding_projection_layer(past).repeat_interleave(splits, dim=1)
        else:
            past = torch.zeros_like(pointers)
        return torch.cat([keys, pointers], 1), torch.cat([position, past], 1), pointers.shape[1]

    @staticmethod
    def _bias(allow: Tensor, tokens: int, splits: int, dtype: torch.dtype) -> Tensor:
        """Return what is added to attention logits, [G, q, 1, T]: nothing, or minus infinity."""
        bias = torch.zeros(allow.shape, dtype=dtype, device=allow.device).masked_fill(~allow, float("-inf"))
        columns = [bias.repeat_interleave(tokens, 2), bias.repeat_interleave(splits, 2)]
        return torch.cat(columns, 2)[:, :, None]

    @staticmethod
    def _cross(
        module: Any,
        query: Tensor,
        keys: Tensor,
        key_position: Tensor,
        bias: Tensor,
        rotary: tuple[Tensor, Tensor],
        supports: int,
        share: Tensor,
    ) -> tuple[Tensor, Tensor]:
        groups, queries = bias.shape[:2]
        tokens = query.shape[2]
        grid_tokens = supports * tokens
        key = module.k_proj(keys + key_position)
        value = module.v_proj(keys)
        asked = module.q_proj(query)
        remembered = key[:, :grid_tokens].reshape(groups * supports, 1, tokens, -1)
        turned, _ = apply_rotary_pos_emb_2d(asked, asked, *rotary)
        key_turned, _ = apply_rotary_pos_emb_2d(remembered, remembered, *rotary)
        key = torch.cat([key_turned.reshape(groups, grid_tokens, -1), key[:, grid_tokens:]], 1)
        scores = turned.reshape(groups, queries * tokens, -1) @ key.transpose(1, 2) * module.scaling
        scores = scores.view(groups, queries, tokens, -1) + bias
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype).view(groups, queries * tokens, -1)
        mixed = module.o_proj(weights @ value)
        on_grid = weights[..., :grid_tokens]
        label = (on_grid @ share.to(weights.dtype))[..., 0] / on_grid.sum(-1).clamp(min=1e-6)
        return mixed.view(groups * queries, 1, tokens, -1), label.view(groups, queries, tokens)

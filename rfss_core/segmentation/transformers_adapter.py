"""SAM 2 as Hugging Face ``transformers`` carries it (``Sam2VideoModel``).

Only its modules and weights are used. Its own video loop is no oracle: it encodes a memory from the mask that did not
make the official round trip, and takes object pointers from the best of three tokens instead of token 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rfss_core.segmentation.adapter import (
    ImageFeatures,
    LayerWeights,
    MemoryAttentionWeights,
    Sam2Adapter,
    Traits,
)


class TransformersAdapter(Sam2Adapter):
    """Adapter over a ``Sam2VideoModel``.

    Args:
        model: the network, in evaluation mode; it is moved to ``device`` and ``dtype``.
        device: where it computes.
        dtype: its arithmetic.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        codes = (model.shared_image_embedding, model.prompt_encoder.shared_embedding)
        super().__init__(model, device, dtype, [(code, "positional_embedding") for code in codes])
        self.model = model
        self.image_encoder = model.vision_encoder
        self.pointer_head = model.object_pointer_proj
        self.no_object_pointer = model.no_object_pointer
        self.no_memory_embedding = model.no_memory_embedding.reshape(-1)
        config = model.config
        grid = model.prompt_encoder.image_embedding_size[0]
        self.traits = Traits(
            image_size=int(config.image_size),
            grid=int(grid),
            hidden_dim=int(model.hidden_dim),
            memory_dim=int(model.mem_dim),
            heads=int(config.memory_attention_num_attention_heads),
            rope_theta=float(config.rope_parameters["rope_theta"]),
            pointer_positions=bool(config.enable_temporal_pos_encoding_for_object_pointers),
            max_pointers=int(config.max_object_pointers_in_encoder),
            multimask=bool(
                config.multimask_output_in_sam
                and config.multimask_output_for_tracking
                and config.multimask_min_pt_num <= 0 <= config.multimask_max_pt_num
            ),
        )
        attention = model.memory_attention
        neck = model.vision_encoder.neck
        self.memory_attention = MemoryAttentionWeights(
            layers=tuple(
                LayerWeights.of(layer, layer.activation, norm="layer_norm", out="o_proj") for layer in attention.layers
            ),
            norm=attention.layer_norm,
            temporal_positions=model.memory_temporal_positional_encoding.flatten(1),
            image_position=self._sine(neck.position_encoding, self.traits.hidden_dim),
            memory_position=self._sine(model.memory_encoder.position_encoding, self.traits.memory_dim),
            pointer_position=model.temporal_positional_encoding_projection_layer,
        )
        self._image_wide_position = model.get_image_wide_positional_embeddings().to(dtype)

    def _sine(self, module: Any, width: int) -> Tensor:
        shape = torch.Size((1, width, self.traits.grid, self.traits.grid))
        code: Tensor = module(shape, self.device, torch.float32)
        return code[0].flatten(1).T.contiguous()

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        """Run Hiera, the feature pyramid and the decoder's two side convolutions."""
        fine, middle, coarse = self.model.vision_encoder(pixels, return_dict=True).fpn_hidden_states
        decoder = self.model.mask_decoder
        return ImageFeatures(coarse, decoder.conv_s1(middle), decoder.conv_s0(fine))

    @torch.inference_mode()
    def encode_memory(self, coarse: Tensor, mask_logits: Tensor, present: Tensor) -> Tensor:
        """Run the memory encoder."""
        memory: Tensor = self.model.memory_encoder(coarse, mask_logits.to(self.dtype))[0]
        absent_code = self.model.occlusion_spatial_embedding_parameter
        if absent_code is not None:
            absent = (~present).to(memory.dtype)[:, None, None, None]
            memory = memory + absent * absent_code[..., None, None]
        return memory

    @torch.inference_mode()
    def prompt_mask(self, mask: Tensor) -> Tensor:
        """Embed masks as dense prompts."""
        dense: Tensor = self.model.prompt_encoder.mask_embed(self.model.mask_downsample(mask.to(self.dtype)))
        return dense

    @torch.inference_mode()
    def embed_points(self, coordinates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the prompt encoder without a mask; sparse embeddings have an axis for several objects, here one."""
        sparse, dense = self.model.prompt_encoder(
            input_points=coordinates[:, None], input_labels=labels[:, None], input_boxes=None, input_masks=None
        )
        return sparse, dense

    @torch.inference_mode()
    def predict_masks(
        self, features: ImageFeatures, conditioned: Tensor, sparse: Tensor, dense: Tensor, *, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the mask decoder."""
        masks, iou, tokens, score = self.model.mask_decoder(
            image_embeddings=conditioned,
            image_positional_embeddings=self._image_wide_position.expand(len(conditioned), -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=[features.fine, features.middle],
        )
        return masks[:, 0], iou[:, 0], tokens[:, 0], score[:, 0]

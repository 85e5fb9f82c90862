"""SAM 2 as Meta's own ``sam2`` package carries it (extra ``sam2``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfss_core.errors import ModelError
from rfss_core.segmentation.adapter import (
    ImageFeatures,
    LayerWeights,
    MemoryAttentionWeights,
    Sam2Adapter,
    Traits,
)
from rfss_core.segmentation.conversion import find_size, find_version, read_meta_checkpoint


def load_meta_network(path: Path) -> Any:
    """Build the official network of a ``.pt`` checkpoint from the official YAML file that fits its weights.

    Args:
        path: the checkpoint.

    Returns:
        A ``sam2.modeling.sam2_base.SAM2Base`` in evaluation mode, on the CPU.

    Raises:
        ModelNotFoundError: no such file.
        ModelError: another architecture, a corrupt file, or the ``sam2`` package is not installed.
    """
    state = read_meta_checkpoint(path)
    size, version = find_size(state), find_version(state)
    folder, stem = ("sam2.1", "sam2.1_hiera") if version == "2.1" else ("sam2", "sam2_hiera")
    try:
        from sam2.build_sam import build_sam2
    except ImportError as error:
        raise ModelError(
            f"reading '{path}' needs Meta's package: pip install 'rfss[sam2]', or convert the checkpoint with "
            "rfss_core.segmentation.conversion.import_checkpoint"
        ) from error
    network = build_sam2(f"configs/{folder}/{stem}_{size.name}.yaml", None, device="cpu")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().split("\n")[1].strip()
        raise ModelError(f"checkpoint '{path}' does not fit {stem}_{size.name}: {first}") from error
    return network


class MetaAdapter(Sam2Adapter):
    """Adapter over a ``SAM2Base``.

    Args:
        network: the official network; it is moved to ``device`` and ``dtype``.
        device: where it computes.
        dtype: its arithmetic.
    """

    def __init__(self, network: Any, device: torch.device, dtype: torch.dtype) -> None:
        code = network.sam_prompt_encoder.pe_layer
        super().__init__(network, device, dtype, [(code, "positional_encoding_gaussian_matrix")])
        self.network = network
        self.image_encoder = network.image_encoder
        self.pointer_head = network.obj_ptr_proj
        self.no_object_pointer = network.no_obj_ptr
        self.no_memory_embedding = network.no_mem_embed.reshape(-1)
        attention = network.memory_attention
        layer = attention.layers[0].self_attn
        self.traits = Traits(
            image_size=int(network.image_size),
            grid=int(network.sam_image_embedding_size),
            hidden_dim=int(network.hidden_dim),
            memory_dim=int(network.mem_dim),
            heads=int(layer.num_heads),
            rope_theta=float(layer.compute_cis.keywords["theta"]),
            pointer_positions=bool(network.add_tpos_enc_to_obj_ptrs),
            max_pointers=int(network.max_obj_ptrs_in_encoder),
            multimask=bool(network._use_multimask(is_init_cond_frame=False, point_inputs=None)),  # noqa: SLF001
        )
        self.memory_attention = MemoryAttentionWeights(
            layers=tuple(
                LayerWeights.of(layer, torch.nn.ReLU(), norm="norm", out="out_proj") for layer in attention.layers
            ),
            norm=attention.norm,
            temporal_positions=network.maskmem_tpos_enc.flatten(1),
            image_position=self._sine(network.image_encoder.neck.position_encoding),
            memory_position=self._sine(network.memory_encoder.position_encoding),
            pointer_position=network.obj_ptr_tpos_proj,
        )

    def _sine(self, module: Any) -> Tensor:
        grid = self.traits.grid
        code: Tensor = module(torch.zeros(1, 1, grid, grid, device=self.device))
        return code[0].flatten(1).T.contiguous()

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        """Run Hiera, the feature pyramid and the decoder's two side convolutions."""
        fine, middle, coarse = self.network.forward_image(pixels)["backbone_fpn"]
        return ImageFeatures(coarse, middle, fine)

    @torch.inference_mode()
    def encode_memory(self, coarse: Tensor, mask_logits: Tensor, present: Tensor) -> Tensor:
        """Run the memory encoder."""
        memory: Tensor = self.network.memory_encoder(coarse, mask_logits.to(self.dtype), skip_mask_sigmoid=True)[
            "vision_features"
        ]
        absent_code = self.network.no_obj_embed_spatial
        if absent_code is not None:
            memory = memory + (~present).to(memory.dtype)[:, None, None, None] * absent_code[..., None, None]
        return memory

    @torch.inference_mode()
    def prompt_mask(self, mask: Tensor) -> Tensor:
        """Embed masks as dense prompts."""
        dense: Tensor = self.network.sam_prompt_encoder._embed_masks(  # noqa: SLF001
            self.network.mask_downsample(mask.to(self.dtype))
        )
        return dense

    @torch.inference_mode()
    def embed_points(self, coordinates: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the prompt encoder without a mask."""
        sparse, dense = self.network.sam_prompt_encoder(points=(coordinates, labels), boxes=None, masks=None)
        return sparse, dense

    @torch.inference_mode()
    def predict_masks(
        self, features: ImageFeatures, conditioned: Tensor, sparse: Tensor, dense: Tensor, *, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the mask decoder."""
        masks, iou, tokens, score = self.network.sam_mask_decoder(
            image_embeddings=conditioned,
            image_pe=self.network.sam_prompt_encoder.get_dense_pe().to(self.dtype),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=[features.fine, features.middle],
        )
        return masks, iou, tokens, score

"""Weights of SAM 2 between Meta's checkpoints (``.pt``) and the hub's folder format, both ways.

Every parameter has one partner, but for two: the hub's format stacks the four point embeddings, and stores the
Gaussian matrix of the position code twice (once for the prompt encoder, once for the image).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfss_core.errors import ModelError, ModelNotFoundError

State = dict[str, Tensor]


@dataclass(frozen=True)
class HieraSize:
    """One size of the image encoder, as in the official YAML files."""

    name: str
    """Suffix of the YAML file: ``t``, ``s``, ``b+`` or ``l``."""
    width: int
    heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]
    windows: tuple[int, int, int, int]
    position_grid: int


SIZES = (
    HieraSize("t", 96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    HieraSize("s", 96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    HieraSize("b+", 112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    HieraSize("l", 144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
)

# Hub name -> Meta name; applied in order, the first whole-prefix match of each column wins.
_PREFIXES = (
    ("no_memory_embedding", "no_mem_embed"),
    ("no_memory_positional_encoding", "no_mem_pos_enc"),
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    ("no_object_pointer", "no_obj_ptr"),
    ("occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    ("object_pointer_proj", "obj_ptr_proj"),
    ("temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    ("vision_encoder.backbone", "image_encoder.trunk"),
    ("vision_encoder.neck", "image_encoder.neck"),
    (
        "prompt_encoder.shared_embedding.positional_embedding",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    ("prompt_encoder.mask_embed.conv1", "sam_prompt_encoder.mask_downscaling.0"),
    ("prompt_encoder.mask_embed.layer_norm1", "sam_prompt_encoder.mask_downscaling.1"),
    ("prompt_encoder.mask_embed.conv2", "sam_prompt_encoder.mask_downscaling.3"),
    ("prompt_encoder.mask_embed.layer_norm2", "sam_prompt_encoder.mask_downscaling.4"),
    ("prompt_encoder.mask_embed.conv3", "sam_prompt_encoder.mask_downscaling.6"),
    ("prompt_encoder", "sam_prompt_encoder"),
    ("mask_decoder.upscale_conv1", "sam_mask_decoder.output_upscaling.0"),
    ("mask_decoder.upscale_layer_norm", "sam_mask_decoder.output_upscaling.1"),
    ("mask_decoder.upscale_conv2", "sam_mask_decoder.output_upscaling.3"),
    ("mask_decoder", "sam_mask_decoder"),
    ("memory_encoder.feature_projection", "memory_encoder.pix_feat_proj"),
    ("memory_encoder.projection", "memory_encoder.out_proj"),
    ("memory_encoder.memory_fuser", "memory_encoder.fuser"),
)
_PARTS = (
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"(neck\.convs\.\d+)\.", r"\1.conv."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d?)\.", r".norm\1."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"(fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
)
_DOWNSAMPLER = re.compile(r"memory_encoder\.mask_downsampler\.(?:layers\.(\d+)\.(conv|layer_norm)|(final_conv))\.(.+)")
_FEED_FORWARD = re.compile(r"(.+)\.(proj_in|proj_out|layers\.(\d+))\.(weight|bias)")
_THREE_LAYERS = ("output_hypernetworks_mlps", "iou_prediction_head", "pred_obj_score_head", "object_pointer_proj")
_POINTS, _META_POINTS = "prompt_encoder.point_embed.weight", "sam_prompt_encoder.point_embeddings.{}.weight"
_IMAGE_GAUSSIAN = "shared_image_embedding.positional_embedding"


def meta_name(hub: str) -> str:
    """Return the name in Meta's checkpoints of one of the hub's parameters."""
    if found := _DOWNSAMPLER.fullmatch(hub):
        layer, kind, _, tail = found.groups()
        position = 12 if layer is None else 3 * int(layer) + (kind == "layer_norm")
        return f"memory_encoder.mask_downsampler.encoder.{position}.{tail}"
    name = _feed_forward(hub)
    for ours, theirs in _PREFIXES:
        if name == ours or name.startswith(ours + "."):
            name = theirs + name[len(ours) :]
            break
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def _feed_forward(name: str) -> str:
    """``proj_in``, ``layers.i``, ``proj_out`` -> ``layers.0``, ``layers.i + 1``, the last layer."""
    found = _FEED_FORWARD.fullmatch(name)
    inner = found is not None and (".mlp." in name or any(part in name for part in _THREE_LAYERS))
    if found is None or not inner:
        return name
    head, part, index, tail = found.groups()
    last = 2 if any(piece in name for piece in _THREE_LAYERS) else 1
    position = {"proj_in": 0, "proj_out": last}.get(part, int(index or 0) + 1)
    return f"{head}.layers.{position}.{tail}"


def to_meta(state: Mapping[str, Tensor]) -> State:
    """Turn the hub's parameters into those of a Meta checkpoint.

    Args:
        state: of a ``Sam2VideoModel``.
    """
    converted: State = {}
    for name, value in state.items():
        if name == _POINTS:
            converted |= {_META_POINTS.format(row): value[row : row + 1].clone() for row in range(len(value))}
        elif name != _IMAGE_GAUSSIAN:
            converted[meta_name(name)] = value
    return converted


def from_meta(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> State:
    """Turn the parameters of a Meta checkpoint into the hub's.

    Args:
        state: the checkpoint's ``model`` entry.
        expected: the hub-format parameters to fill (names and shapes).

    Returns:
        One tensor for each expected name.

    Raises:
        ModelError: the checkpoint lacks a parameter, has one more, or one of another shape.
    """
    converted: State = {}
    used: set[str] = set()
    for name, wanted in expected.items():
        if name == _POINTS:
            sources = [_META_POINTS.format(row) for row in range(len(wanted))]
        else:
            target = "prompt_encoder.shared_embedding.positional_embedding" if name == _IMAGE_GAUSSIAN else name
            sources = [meta_name(target)]
        if missing := [source for source in sources if source not in state]:
            raise ModelError(f"the checkpoint lacks '{missing[0]}'; it is not a SAM 2 checkpoint of this size")
        value = torch.cat([state[source] for source in sources]) if len(sources) > 1 else state[sources[0]]
        if value.shape != wanted.shape:
            raise ModelError(
                f"'{sources[0]}' has shape {tuple(value.shape)} in the checkpoint but {tuple(wanted.shape)} in the "
                "network; it is not a SAM 2 checkpoint of this size"
            )
        used.update(sources)
        converted[name] = value
    if extra := sorted(set(state) - used):
        raise ModelError(f"the checkpoint has a parameter '{extra[0]}' that SAM 2 does not know")
    return converted


def read_meta_checkpoint(path: Path) -> State:
    """Read a ``.pt`` file without running any code in it.

    Raises:
        ModelNotFoundError: no such file.
        ModelError: not a checkpoint, or one that needs unpickling of anything but tensors.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"no checkpoint at '{path}'; give a .pt file of SAM 2, a folder or a hub id")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise ModelError(
            f"checkpoint '{path}' is corrupt or holds more than tensors ({reason}); download the official file again"
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"checkpoint '{path}' has no 'model' entry of tensors; it is not one of SAM 2's")
    return state


def find_size(state: Mapping[str, Tensor]) -> HieraSize:
    """Recognise the size of a Meta checkpoint.

    Raises:
        ModelError: another architecture.
    """
    embedding = state.get("image_encoder.trunk.pos_embed")
    blocks = {int(found[1]) for name in state if (found := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", name))}
    for size in SIZES:
        if embedding is not None and embedding.shape[1] == size.width and len(blocks) == sum(size.stages):
            return size
    raise ModelError(
        f"the checkpoint is of another architecture ({len(blocks)} Hiera blocks); SAM 2 and 2.1 in sizes tiny, small, "
        "base plus and large can be read"
    )


def build_config(size: HieraSize, *, version: str, image_size: int = 1024) -> Any:
    """Return the hub's configuration of an official network.

    Args:
        size: of the image encoder.
        version: ``2.0`` or ``2.1``.
        image_size: N; 1024 for the official weights.
    """
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig

    widths = [size.width * 2**stage for stage in range(4)]
    sides = [image_size // 4, image_size // 8, image_size // 16]
    backbone = Sam2HieraDetConfig(
        hidden_size=size.width,
        num_attention_heads=size.heads,
        image_size=[image_size, image_size],
        blocks_per_stage=list(size.stages),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[size.heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(size.windows),
        window_positional_embedding_background_size=[size.position_grid] * 2,
        global_attention_blocks=list(size.global_blocks),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[side, side] for side in sides],
    )
    return Sam2VideoConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"image_size": image_size},
        image_size=image_size,
        memory_attention_rope_feat_sizes=[sides[2], sides[2]],
        enable_occlusion_spatial_embedding=version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
    )


def find_version(state: Mapping[str, Tensor]) -> str:
    """Return ``2.1`` or ``2.0``, by the embedding of absent objects that 2.1 added."""
    return "2.1" if "no_obj_embed_spatial" in state else "2.0"


def build_network(state: Mapping[str, Tensor], image_size: int = 1024) -> Any:
    """Build a ``Sam2VideoModel`` with the weights of a Meta checkpoint.

    Args:
        state: the checkpoint's ``model`` entry.
        image_size: N; 1024 for the official weights.

    Raises:
        ModelError: another architecture.
    """
    from transformers import Sam2VideoModel

    network = Sam2VideoModel(build_config(find_size(state), version=find_version(state), image_size=image_size))
    network.load_state_dict(from_meta(state, network.state_dict()))
    network.train(mode=False)
    return network


def import_checkpoint(path: Path, folder: Path) -> None:
    """Write a Meta checkpoint as a hub-format folder (``config.json`` and ``model.safetensors``).

    Raises:
        ModelNotFoundError, ModelError: see :func:`read_meta_checkpoint` and :func:`build_network`.
    """
    build_network(read_meta_checkpoint(path)).save_pretrained(folder)


def export_checkpoint(network: Any, path: Path) -> None:
    """Write a ``Sam2VideoModel`` as a checkpoint that Meta's ``build_sam2`` loads."""
    torch.save({"model": to_meta(network.state_dict())}, path)

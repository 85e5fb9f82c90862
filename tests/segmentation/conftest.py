"""Small random SAM 2 networks in the hub's folder format, and supports of simple shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from rfss_core.digest import digest_json
from rfss_core.presets import Preset
from rfss_core.settings import SegmentationSettings


def tiny_config(image_size: int = 64, *, version: str = "2.1", **changes: Any) -> Any:
    """Configuration of a SAM 2 that runs in milliseconds; the architecture is the real one."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig

    sizes = [image_size // 4, image_size // 8, image_size // 16]
    width = 128
    return Sam2VideoConfig(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(
                hidden_size=16,
                blocks_per_stage=[1, 1, 2, 1],
                embed_dim_per_stage=[16, 32, 64, 128],
                num_attention_heads_per_stage=[1, 2, 4, 8],
                window_size_per_stage=[8, 4, 4, 2],
                global_attention_blocks=[3],
                image_size=[image_size, image_size],
            ).to_dict(),
            backbone_channel_list=[128, 64, 32, 16],
            backbone_feature_sizes=[[size, size] for size in sizes],
            fpn_hidden_size=width,
        ).to_dict(),
        prompt_encoder_config={"hidden_size": width, "image_size": image_size},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
        image_size=image_size,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=128,
        memory_attention_rope_feat_sizes=[sizes[2], sizes[2]],
        memory_encoder_hidden_size=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=64,
        mask_downsampler_embed_dim=width,
        enable_occlusion_spatial_embedding=version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
        **changes,
    )


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter random values of a trained network's size, so that nothing hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and name.endswith("weight") and "embed" not in name:
                parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
            elif parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
        # Support slices must look occupied to the decoder, or every pointer is the same one.
        network.get_submodule("mask_decoder.pred_obj_score_head").proj_out.bias.add_(2.0)


@dataclass
class Shapes:
    """A support set in memory: random textures with a disc (class 1) and a square (class 3)."""

    images: list[np.ndarray]
    masks: list[np.ndarray]
    classes: dict[int, str] = field(default_factory=lambda: {1: "disc", 3: "square"})
    name: str = "shapes"

    @property
    def ids(self) -> list[str]:
        return [f"slice-{index}" for index in range(len(self.images))]

    @property
    def digest(self) -> str:
        return digest_json([self.name, [image.tobytes().hex() for image in self.images], sorted(self.classes)])

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def mask(self, index: int) -> np.ndarray:
        return self.masks[index]


@dataclass
class Found:
    """Neighbours of one query."""

    indices: np.ndarray
    distances: np.ndarray

    def for_class(self, value: int) -> np.ndarray:
        return self.indices

    @classmethod
    def of(cls, *indices: int) -> Found:
        return cls(np.array(indices, dtype=np.int64), np.linspace(0, 1, len(indices), dtype=np.float32))


def draw(seed: int, shape: tuple[int, int] = (70, 90), *, disc: bool = True, square: bool = True) -> Any:
    """One image with its label map."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, np.uint8)
    if disc:
        centre = rng.uniform(0.3, 0.7, 2) * shape
        mask[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (0.18 * min(shape)) ** 2] = 1
    if square:
        corner = (rng.uniform(0.1, 0.6, 2) * shape).astype(int)
        side = min(shape) // 5
        mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = 3
    image = 0.2 + 0.3 * (mask == 1) + 0.5 * (mask == 3) + 0.05 * rng.standard_normal(shape)
    return image.clip(0, 1).astype(np.float32), mask


def draw_shapes(count: int, *, first: int = 0, without_square: tuple[int, ...] = ()) -> Shapes:
    drawn = [draw(first + index, square=index not in without_square) for index in range(count)]
    return Shapes([image for image, _ in drawn], [mask for _, mask in drawn])


class Toys:
    """Everything above, for test modules (which cannot import a conftest)."""

    Found = Found
    tiny_config = staticmethod(tiny_config)
    randomise = staticmethod(randomise)
    draw = staticmethod(draw)
    shapes = staticmethod(draw_shapes)
    queries: ClassVar = [draw(100 + index)[0] for index in range(5)]
    found: ClassVar = [Found.of(0, 1, 2), Found.of(2, 1, 4), Found.of(5, 3, 0), Found.of(1), Found.of(3, 4, 5)]


@pytest.fixture(scope="session")
def toys() -> type[Toys]:
    return Toys


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of hub-format folders with random weights, one a configuration."""
    from transformers import Sam2VideoModel

    made: dict[str, Path] = {}

    def make(image_size: int = 64, version: str = "2.1", seed: int = 0, **changes: Any) -> Path:
        key = digest_json([image_size, version, seed, changes])
        if key not in made:
            torch.manual_seed(seed)
            network = Sam2VideoModel(tiny_config(image_size, version=version, **changes))
            randomise(network, seed)
            made[key] = tmp_path_factory.mktemp("sam2")
            network.save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def preset(model_folder: Callable[..., Path]) -> Preset:
    """A preset whose SAM 2 is the small random one."""
    return Preset("embedded:dinov2-tiny", str(model_folder()), 4, "direct", "tests")


@pytest.fixture
def settings() -> SegmentationSettings:
    """CPU, no gate: random weights give random object scores."""
    return SegmentationSettings(device="cpu", object_score_threshold=None)

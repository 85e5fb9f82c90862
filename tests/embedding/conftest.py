"""A small random DINOv2 in the hub's folder format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from rfss_core.embedding import Dinov2Embedder, load_embedder
from rfss_core.presets import PRESETS
from rfss_core.settings import EmbeddingSettings

# A wide initialisation: with the usual one, all inputs of an untrained network look alike.
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session", params=["registers", "plain"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if request.param == "registers":
            model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=2, **SMALL))
        else:
            model = Dinov2Model(Dinov2Config(**SMALL))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedder(model_folder: Path) -> Dinov2Embedder:
    return load_embedder(EmbeddingSettings(model=str(model_folder), batch_size=4), PRESETS["tiny"], "cpu")

"""Model references: what is found, refused, and what the digest depends on."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from rfss_core.errors import ModelError, ModelNotFoundError
from rfss_core.weights import load_checkpoint, reference, resolve_model

TYPES = {"dinov2_with_registers"}
CONFIG = Dinov2WithRegistersConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7, num_register_tokens=2
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    Dinov2WithRegistersModel(CONFIG).save_pretrained(path)
    return path


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "weights"
    (root / "small").mkdir(parents=True)
    CONFIG.save_pretrained(root / "small")
    config = json.loads((root / "small" / "config.json").read_text())
    (root / "small" / "config.json").write_text(json.dumps({"model_type": "dinov2_with_registers", **config}))
    monkeypatch.setattr(reference, "EMBEDDED_ROOT", root)
    return root / "small"


def test_a_saved_folder_comes_back_bit_for_bit(folder: Path) -> None:
    found = resolve_model(str(folder))
    assert found.trained
    assert set(found.files) == {"config.json", "model.safetensors"}
    model = load_checkpoint(found, Dinov2WithRegistersModel, TYPES)
    original = Dinov2WithRegistersModel.from_pretrained(folder)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, original.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_digest_follows_the_weights_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    before = resolve_model(str(folder)).digest
    moved = folder.rename(tmp_path / "elsewhere")
    assert resolve_model(str(moved)).digest == before
    Dinov2WithRegistersModel(CONFIG).save_pretrained(moved)
    assert resolve_model(str(moved)).digest != before


def test_an_embedded_folder_without_weights_is_built_from_a_fixed_seed(embedded: Path) -> None:
    found = resolve_model("embedded:small")
    assert not found.trained
    torch.manual_seed(1)
    first = load_checkpoint(found, Dinov2WithRegistersModel, TYPES).state_dict()
    torch.manual_seed(2)
    second = load_checkpoint(found, Dinov2WithRegistersModel, TYPES).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    Dinov2WithRegistersModel(CONFIG).save_pretrained(embedded)
    trained = resolve_model("embedded:small")
    assert trained.trained
    assert trained.digest != found.digest


def test_initialisation_leaves_the_global_generator_alone(embedded: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_checkpoint(resolve_model("embedded:small"), Dinov2WithRegistersModel, TYPES)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["embedded:../segmentation", "embedded:", "embedded:nothing", "embedded:/etc"])
def test_embedded_names_stay_inside_and_name_the_choice(embedded: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="embedded:small"):
        resolve_model(name)


def test_a_path_that_does_not_exist_names_the_remedy() -> None:
    with pytest.raises(ModelNotFoundError, match="existing folder, a hub id"):
        resolve_model("./no/such/model")


def test_a_hub_id_without_network_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"not cached and the hub cannot be reached.*preset 'tiny'"):
        resolve_model("facebook/dinov2-with-registers-small", "main")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled.*convert"):
        resolve_model(str(folder))


def test_a_folder_without_weights_is_refused_outside_the_package(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"holds no model\.safetensors"):
        resolve_model(str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    Dinov2WithRegistersModel(CONFIG).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shard = min(folder.glob("model-*.safetensors"))
    assert resolve_model(str(folder)).trained
    assert load_checkpoint(resolve_model(str(folder)), Dinov2WithRegistersModel, TYPES) is not None
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        resolve_model(str(folder))


def test_another_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"'dinov2_with_registers'.*sam2_video is needed"):
        load_checkpoint(resolve_model(str(folder)), Dinov2WithRegistersModel, {"sam2_video"})


def test_weights_of_another_architecture_are_not_filled_with_noise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="missing or misshapen"):
        load_checkpoint(resolve_model(str(folder)), Dinov2WithRegistersModel, TYPES)


def test_misshapen_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(ModelError, match="model"):
        load_checkpoint(resolve_model(str(folder)), Dinov2WithRegistersModel, TYPES)


@pytest.mark.parametrize("keep", [0, 7, 200, 0.5])
def test_a_truncated_file_is_refused(folder: Path, keep: float) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(keep if keep != 0.5 else len(data) * keep)])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_checkpoint(resolve_model(str(folder)), Dinov2WithRegistersModel, TYPES)


def test_a_broken_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        resolve_model(str(folder))

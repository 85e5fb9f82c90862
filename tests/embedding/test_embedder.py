"""The DINOv2 embedder: what an embedding may depend on, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, ViTConfig, ViTModel

from rfss_core.embedding import Dinov2Embedder, load_embedder
from rfss_core.embedding.preprocess import preprocess
from rfss_core.errors import GeometryError, ModelError, ModelNotFoundError, PixelError, SettingsError
from rfss_core.presets import PRESETS, Preset
from rfss_core.settings import EmbeddingSettings

SHAPES = [(56, 56), (40, 90), (90, 40), (31, 33, 3), (200, 180), (56, 56, 3), (64, 40), (40, 90)]


def slices(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(shape, dtype=np.float32) for shape in SHAPES]


def test_embeddings_are_unit_vectors_of_the_stated_size(embedder: Dinov2Embedder) -> None:
    result = embedder.embed(slices())
    assert result.shape == (len(SHAPES), embedder.dim) == (len(SHAPES), 48)
    assert result.dtype == np.float32
    assert np.allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    assert len(np.unique(result.round(3), axis=0)) == len(SHAPES)


def test_it_is_the_normalised_class_token(embedder: Dinov2Embedder, model_folder: Path) -> None:
    image = slices()[0]
    with torch.inference_mode():
        output = AutoModel.from_pretrained(model_folder)(pixel_values=preprocess(image, (56, 56))[None])
    token = output.pooler_output[0].numpy()
    assert np.allclose(embedder.embed([image])[0], token / np.linalg.norm(token), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_company_does_not_change_an_embedding(embedder: Dinov2Embedder, batch_size: int) -> None:
    images = slices()
    alone = np.concatenate([embedder.embed([image]) for image in images])
    order = np.random.default_rng(batch_size).permutation(len(images))
    together = embedder.embed([images[i] for i in order], batch_size)
    assert np.abs(together - alone[order]).max() < 2e-6


def test_a_grey_slice_equals_its_three_channel_copy(embedder: Dinov2Embedder) -> None:
    grey = slices()[1]
    first, second = embedder.embed([grey, np.repeat(grey[..., None], 3, axis=2)])
    assert np.allclose(first, second, atol=1e-5)


def test_eight_bit_and_read_only_slices_are_taken(embedder: Dinov2Embedder) -> None:
    image = (slices()[0] * 255).astype(np.uint8)
    floats = image.astype(np.float32) / 255
    floats.flags.writeable = False
    first, second = embedder.embed([image, floats])
    assert np.array_equal(first, second)


def test_no_slices_give_no_embeddings(embedder: Dinov2Embedder) -> None:
    assert embedder.embed([]).shape == (0, 48)


def test_a_saved_folder_gives_the_same_digest_and_embeddings(
    embedder: Dinov2Embedder, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "copy")
    copy = load_embedder(EmbeddingSettings(model=str(tmp_path / "copy")), PRESETS["tiny"], "cpu")
    assert copy.digest == embedder.digest
    assert np.array_equal(copy.embed(slices()[:2]), embedder.embed(slices()[:2]))
    assert copy.name == str(tmp_path / "copy")


def test_the_digest_covers_weights_and_input_size(embedder: Dinov2Embedder, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 28, "width": 28}}))
    smaller = load_embedder(EmbeddingSettings(model=str(folder)), PRESETS["tiny"], "cpu")
    assert smaller.digest != embedder.digest
    assert not np.allclose(smaller.embed(slices()[:1]), embedder.embed(slices()[:1]), atol=1e-3)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"wide": 28}}))
    with pytest.raises(ModelError, match="preprocessor_config"):
        load_embedder(EmbeddingSettings(model=str(folder)), PRESETS["tiny"], "cpu")


def test_the_tiny_preset_loads_offline() -> None:
    tiny = load_embedder(EmbeddingSettings(), PRESETS["tiny"], "cpu")
    again = load_embedder(EmbeddingSettings(), PRESETS["tiny"], "cpu")
    assert tiny.name == "embedded:dinov2-tiny"
    assert tiny.digest == again.digest
    assert isinstance(tiny.trained, bool)
    assert np.array_equal(tiny.embed(slices()), again.embed(slices()))


def test_the_preset_names_the_model_unless_the_settings_do(model_folder: Path) -> None:
    preset = Preset(str(model_folder), "embedded:sam2-tiny", 8, "direct", "test")
    assert load_embedder(EmbeddingSettings(), preset, "cpu").name == str(model_folder)


@pytest.mark.parametrize(
    ("image", "error"), [(np.zeros((3, 9, 9)), GeometryError), (np.full((9, 9), np.nan), PixelError)]
)
def test_bad_slices_are_named(embedder: Dinov2Embedder, image: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error, match="slice 2"):
        embedder.embed([*slices()[:2], image])


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match=r"'vit'.*dinov2"):
        load_embedder(EmbeddingSettings(model=str(tmp_path / "vit")), PRESETS["tiny"], "cpu")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        load_embedder(EmbeddingSettings(model=str(tmp_path / "nowhere")), PRESETS["tiny"], "cpu")


def test_damaged_weights_do_not_pass_as_embeddings(model_folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(model_folder)
    model.layernorm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    broken = load_embedder(EmbeddingSettings(model=str(tmp_path / "broken")), PRESETS["tiny"], "cpu")
    with pytest.raises(ModelError, match="not finite"):
        broken.embed(slices()[:1])


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps"])
def test_a_device_that_is_not_there_is_refused(model_folder: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=device):
        load_embedder(EmbeddingSettings(model=str(model_folder)), PRESETS["tiny"], device)

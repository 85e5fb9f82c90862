"""From settings to a segmenter, and refusals on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rfss_core.errors import ModelError, ModelNotFoundError, SettingsError
from rfss_core.presets import PRESETS, Preset
from rfss_core.segmentation import load_segmenter
from rfss_core.segmentation.loading import choose_device
from rfss_core.settings import SegmentationSettings


def with_model(folder: Path) -> SegmentationSettings:
    return SegmentationSettings(device="cpu", model=str(folder))


def test_the_embedded_model_segments(toys: Any) -> None:
    segmenter = load_segmenter(SegmentationSettings(device="cpu"), PRESETS["tiny"])
    result = segmenter.segment(toys.queries[:1], [toys.Found.of(0, 1)], toys.shapes(2))[0]
    assert result.labels.shape == toys.queries[0].shape
    assert isinstance(segmenter.trained, bool)


def test_settings_win_over_the_preset(preset: Preset) -> None:
    meta = load_segmenter(SegmentationSettings(device="cpu", support_masks="meta"), preset)
    assert (meta.mode, load_segmenter(SegmentationSettings(device="cpu"), preset).mode) == ("meta", "direct")


def test_an_unknown_hub_model_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError):
        load_segmenter(SegmentationSettings(device="cpu", model="nobody/no-such-sam2"), PRESETS["fast"])


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="missing"):
        load_segmenter(with_model(tmp_path / "missing"), PRESETS["tiny"])


def test_another_architecture(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is of type 'dinov2'"):
        load_segmenter(with_model(tmp_path), PRESETS["tiny"])


def test_weights_of_another_size(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(model_folder(), tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    config["memory_attention_num_layers"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="parameters are missing"):
        load_segmenter(with_model(tmp_path / "other"), PRESETS["tiny"])


def test_corrupt_weights(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(model_folder(), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_segmenter(with_model(tmp_path / "cut"), PRESETS["tiny"])


def test_pickled_weights(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(model_folder(), tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_segmenter(with_model(tmp_path / "pickled"), PRESETS["tiny"])


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cuda:x"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        choose_device(name)


@pytest.mark.slow
def test_a_checkpoint_of_metas_segments_as_its_conversion_does(toys: Any, tmp_path: Path) -> None:
    from rfss_core.segmentation.conversion import import_checkpoint
    from rfss_core.segmentation.official import build_predictor

    torch.manual_seed(0)
    torch.save({"model": build_predictor("t", "2.1").state_dict()}, tmp_path / "tiny.pt")
    import_checkpoint(tmp_path / "tiny.pt", tmp_path / "converted")
    results = [
        load_segmenter(SegmentationSettings(device="cpu", model=str(tmp_path / name)), PRESETS["tiny"]).segment(
            toys.queries[:1], [toys.Found.of(0)], toys.shapes(1), classes=[1]
        )[0]
        for name in ("tiny.pt", "converted")
    ]
    assert results[0].logits is not None
    assert results[1].logits is not None
    assert abs(results[0].logits - results[1].logits).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "corrupt"),
        ({"weights": 1}, "no 'model' entry"),
        ({"model": {"image_encoder.trunk.blocks.0.x": torch.zeros(1)}}, "another architecture"),
        ({"model": Path("run me")}, "corrupt or holds more than tensors"),
    ],
)
def test_checkpoints_that_are_none(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "bad.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        load_segmenter(with_model(path), PRESETS["tiny"])


def test_a_checkpoint_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no checkpoint"):
        load_segmenter(with_model(tmp_path / "none.pt"), PRESETS["tiny"])

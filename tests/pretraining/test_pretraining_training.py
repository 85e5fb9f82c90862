"""The training programs: they learn, resume exactly, and export what plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate
from transformers import Dinov2WithRegistersModel, Sam2VideoModel

import rfss_core
from rfss_core.errors import ModelError, SettingsError
from rfss_core.pretraining.checkpoint import average_checkpoints, load_checkpoint, save_checkpoint
from rfss_core.pretraining.conditioning import InContextSam2
from rfss_core.pretraining.embedder import (
    AgreementObjective,
    agreement_loss,
    build_dinov2,
    embed,
    label_agreement,
    standardise,
)
from rfss_core.pretraining.export import build, export
from rfss_core.pretraining.glimpse import initialise_glimpses
from rfss_core.pretraining.propagation import initialise
from rfss_core.pretraining.segmenter import InContextObjective, build_sam2, draw_supports
from rfss_core.pretraining.settings import TrainingSettings
from rfss_core.pretraining.task import GroupDataset, LabelledGroupDataset
from rfss_core.pretraining.trainer import learning_rate, train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sam2_settings(**changes) -> TrainingSettings:
    return TrainingSettings(size=128, groups=1, members=4, warmup=2, horizon=40, seed=5, ema=0.5, **changes)


class SameGroups(GroupDataset):
    """Few groups over and over: what a handful of steps can learn."""

    def __getitem__(self, index: int):
        return super().__getitem__(index % 2)


def test_sam2_learns_in_a_few_steps(tmp_path: Path):
    settings = sam2_settings()
    objective = InContextObjective(settings)
    data = SameGroups([], 128, 4, seed=5)
    batch = default_collate([data[0], data[1]])

    def loss() -> float:
        with torch.no_grad():
            return float(objective.loss(batch, torch.Generator().manual_seed(0))[0])

    before = loss()
    train(objective, data, settings, tmp_path, steps=12)
    assert loss() < 0.93 * before


def test_sam2_resumes_to_the_weights_of_an_undisturbed_run(tmp_path: Path):
    settings = sam2_settings()
    data = GroupDataset([], 128, 4, seed=5)
    whole = train(InContextObjective(settings), data, settings, tmp_path / "whole", steps=2)
    train(InContextObjective(settings), data, settings, tmp_path / "parts", steps=1)
    resumed = train(InContextObjective(settings), data, settings, tmp_path / "parts", steps=2)
    assert resumed.step == whole.step == 2
    assert resumed.groups_seen == whole.groups_seen
    for part in ("weights", "average"):
        for name, value in getattr(whole, part).items():
            assert torch.equal(value, getattr(resumed, part)[name]), name


def test_dinov2_learns_to_rank_by_label_agreement(tmp_path: Path):
    settings = TrainingSettings(size=112, groups=2, members=6, warmup=2, horizon=60, seed=1, learning_rate=1e-3)

    class SameLabelledGroups(LabelledGroupDataset):
        def __getitem__(self, index: int):
            return super().__getitem__(index % 2)

    data = SameLabelledGroups([], 112, 6, seed=1)
    objective = AgreementObjective(settings)
    batch = default_collate([data[0], data[1]])
    with torch.no_grad():
        before = float(objective.loss(batch, torch.Generator())[0])
    train(objective, data, settings, tmp_path, steps=15)
    with torch.no_grad():
        after = float(objective.loss(batch, torch.Generator())[0])
    assert after < 0.9 * before


def test_checkpoints_of_the_other_kind_are_refused(tmp_path: Path):
    settings = TrainingSettings(size=56, groups=1, members=2, warmup=0, horizon=1)
    train(AgreementObjective(settings), LabelledGroupDataset([], 56, 2), settings, tmp_path, steps=1)
    with pytest.raises(ModelError, match="dinov2"):
        load_checkpoint(tmp_path, "sam2")
    with pytest.raises(ModelError, match="train first"):
        export(tmp_path / "nowhere", tmp_path / "out")


def small_settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{"size": 56, "groups": 1, "members": 2, "warmup": 0, "horizon": 1} | changes)


def test_a_training_starts_from_the_weights_of_a_folder_and_its_export_says_so(tmp_path: Path):
    data = LabelledGroupDataset([], 56, 2)
    train(AgreementObjective(small_settings()), data, small_settings(), tmp_path / "first", steps=1)
    export(tmp_path / "first", tmp_path / "out")
    # No step at all: what is kept is what it started from.
    settings = small_settings(start=str(tmp_path / "out"))
    begun = train(AgreementObjective(settings), data, settings, tmp_path / "second", steps=0)
    stored = Dinov2WithRegistersModel.from_pretrained(tmp_path / "out").state_dict()
    for name, value in begun.weights.items():
        assert torch.equal(value, stored[name]), name
    export(tmp_path / "second", tmp_path / "again")
    said = json.loads((tmp_path / "again" / "config.json").read_text())["rfss"]
    assert said["started_from"]["steps"] == 1
    assert said["device"] == "cpu"


def test_a_start_that_cannot_be_is_refused(tmp_path: Path):
    data = LabelledGroupDataset([], 56, 2)
    missing = small_settings(start=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        train(AgreementObjective(missing), data, missing, tmp_path / "run", steps=1)
    foreign = small_settings(start=str(Path(rfss_core.__file__).parent / "weights" / "sam2-tiny"))
    with pytest.raises(ModelError, match="does not fit"):
        train(AgreementObjective(foreign), data, foreign, tmp_path / "run", steps=1)
    endless = small_settings(horizon=None)
    with pytest.raises(SettingsError, match="--minutes"):
        train(AgreementObjective(endless), data, endless, tmp_path / "run")


def test_without_a_horizon_the_rate_falls_with_the_time():
    settings = small_settings(horizon=None, warmup=3, learning_rate=1.0)
    rates = [learning_rate(3, settings, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == rates[-2] == pytest.approx(0.02)
    # The warm-up counts steps all the same.
    assert learning_rate(0, settings, 0.9) == pytest.approx(1 / 3)


def test_average_of_branches_lies_between_them_and_trains_on(tmp_path: Path):
    def settings(seed: int) -> TrainingSettings:
        return TrainingSettings(size=56, groups=1, members=2, warmup=0, horizon=4, seed=seed)

    for seed in (0, 1):
        data = LabelledGroupDataset([], 56, 2, seed)
        train(AgreementObjective(settings(seed)), data, settings(seed), tmp_path / str(seed), steps=2)
    with pytest.raises(ModelError, match="each of two folders"):
        average_checkpoints([tmp_path / "0", tmp_path / "nowhere"])
    branches = [load_checkpoint(tmp_path / str(seed)) for seed in (0, 1)]
    mean = average_checkpoints([tmp_path / "0", tmp_path / "1"])
    assert branches[0] is not None
    assert branches[1] is not None
    for part in ("weights", "average"):
        for name, value in getattr(mean, part).items():
            expected = (getattr(branches[0], part)[name] + getattr(branches[1], part)[name]) / 2
            torch.testing.assert_close(value, expected)
    save_checkpoint(tmp_path / "mean", mean)
    data = LabelledGroupDataset([], 56, 2)
    assert train(AgreementObjective(settings(0)), data, settings(0), tmp_path / "mean", steps=3).step == 3


def test_exports_load_with_plain_transformers(tmp_path: Path):
    settings = TrainingSettings(size=56, groups=1, members=2, warmup=0, horizon=1)
    train(AgreementObjective(settings), LabelledGroupDataset([], 56, 2), settings, tmp_path / "d", steps=1)
    train(InContextObjective(sam2_settings()), GroupDataset([], 128, 4), sam2_settings(), tmp_path / "s", steps=1)
    for run, architecture in (("d", Dinov2WithRegistersModel), ("s", Sam2VideoModel)):
        file = export(tmp_path / run, tmp_path / f"{run}-out")
        assert file.stat().st_size < 16 * 2**20
        loaded, report = architecture.from_pretrained(file.parent, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        checkpoint = load_checkpoint(tmp_path / run)
        assert checkpoint is not None
        expected = build(checkpoint).state_dict()
        for name, value in loaded.state_dict().items():
            assert value.dtype == torch.float32
            # float16 keeps 11 bits.
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)
        if run == "s":
            positions = loaded.memory_temporal_positional_encoding
            torch.testing.assert_close(positions, positions[-1:].expand_as(positions))
        described = json.loads((file.parent / "config.json").read_text())["rfss"]
        assert described["trained"] is True
        assert described["licence"].startswith("CC BY-SA")


def coarse_fine(masks: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(masks[:, None], 32).flatten(1) > 0.5


def test_label_propagation_start_propagates():
    """Before any training, attention falls on the foreground of the supports where the query shows the same."""
    torch.manual_seed(0)
    size = 128
    axis = torch.arange(size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    centres = torch.tensor([[40, 40], [80, 50], [60, 90], [45, 75]])
    masks = torch.stack([((rows - y) ** 2 + (columns - x) ** 2 < 26**2).float() for y, x in centres.tolist()])
    images = (0.25 + 0.5 * masks + 0.03 * torch.randn(masks.shape)).clamp(0, 1)
    allow = (~torch.eye(4, dtype=torch.bool))[None]
    offsets = torch.linspace(0.25, 1, 4)[None]
    coarse = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], 8).flatten(1) > 0.5

    def gap(model) -> float:
        with torch.no_grad():
            answer, _ = InContextSam2(model)(images[None], masks[None], allow, offsets)
        label = answer.propagated[:, 0]
        return float(label[coarse].mean() - label[~coarse].mean())

    plain = build_sam2(size).eval()
    assert abs(gap(plain)) < 0.05
    started = build_sam2(size).eval()
    initialise(started, images[None], masks[None], seed=0)
    assert gap(started) > 0.3
    # The decoder reads the propagated label before it has learnt anything.
    with torch.no_grad():
        answer, _ = InContextSam2(started)(images[None], masks[None], allow, offsets)
    assert torch.sigmoid(answer.best()).flatten(1)[coarse_fine(masks)].mean() > 0.6
    assert torch.sigmoid(answer.best()).flatten(1)[~coarse_fine(masks)].mean() < 0.4


def test_glimpse_start_describes_places():
    """Before any training, embeddings of pictures with the same layout are the nearest."""
    generator = torch.Generator().manual_seed(0)
    layouts = torch.nn.functional.interpolate(torch.rand((12, 1, 4, 4), generator=generator), size=112, mode="bilinear")
    first = (layouts[:, 0] + 0.05 * torch.randn((12, 112, 112), generator=generator)).clamp(0, 1)
    second = (layouts[:, 0] + 0.05 * torch.randn((12, 112, 112), generator=generator)).clamp(0, 1)
    plain, started = build_dinov2().eval(), build_dinov2().eval()
    initialise_glimpses(started, standardise(first))

    def spread(model) -> torch.Tensor:
        with torch.no_grad():
            return embed(model, first) @ embed(model, second).T

    assert torch.equal(spread(started).argmax(1), torch.arange(12))
    others = ~torch.eye(12, dtype=torch.bool)
    assert spread(started)[others].mean() < 0.3 < spread(plain)[others].mean()


def test_every_query_has_a_support_that_shows_the_class():
    generator = torch.Generator().manual_seed(0)
    present = torch.zeros(50, 6, dtype=torch.bool)
    present[:, :2] = True
    allow = draw_supports(present, generator)
    assert not allow.diagonal(dim1=1, dim2=2).any()
    assert (allow & present[:, None]).any(2).all()
    counts = allow.sum(2)
    assert counts.min() == 1
    assert counts.max() == 5


def test_label_agreement_is_dice():
    first = torch.zeros(3, 32, 32, dtype=torch.long)
    first[0, :16] = 1
    first[1, 8:24] = 1
    agreement = label_agreement(first)
    assert agreement[0, 1] == pytest.approx(0.5)
    assert agreement[0, 2] == 0
    assert agreement[2, 2] == 1
    assert torch.equal(agreement, agreement.T)


def test_agreement_loss_prefers_the_right_neighbours():
    agreement = torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    source = torch.tensor([0])
    right = agreement_loss(torch.stack([near, near, far])[None], agreement, source)
    wrong = agreement_loss(torch.stack([near, far, near])[None], agreement, source)
    assert right < wrong


def test_rate_warms_up_and_falls():
    settings = TrainingSettings(warmup=10, horizon=100)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert max(rates) == pytest.approx(settings.learning_rate)
    assert rates[0] < rates[5] < rates[9]
    assert rates[100] == pytest.approx(0.02 * settings.learning_rate)


def test_embedded_configurations_build():
    assert sum(parameter.numel() for parameter in build_sam2(256).parameters()) < 8_000_000
    assert sum(parameter.numel() for parameter in build_dinov2().parameters()) < 8_000_000

"""Training on labels of unequal worth: the loss, who trains and who validates, resume, every architecture."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from discs import support_of
from hypothesis import given, strategies
from hypothesis import settings as examples
from monai.losses.dice import DiceCELoss

from rfss_core.errors import ModelError, SupportError
from rfss_core.settings import SupervisedSettings
from rfss_core.training import Checkpoints, Provenance, Round, SupervisedSegmenter, train_supervised
from rfss_core.training.labelled import Order, Roles, divide
from rfss_core.training.loss import IGNORED, dice_ce

CPU = torch.device("cpu")
QUICK = SupervisedSettings(width=4, steps=3, round_steps=2)


def batch(seed: int, planes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, planes, 8, 8, generator=draw), torch.randint(0, planes, (4, 8, 8), generator=draw)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_sure_labels_is_monais(seed: int) -> None:
    logits, labels = batch(seed)
    theirs = DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, batch=True)(logits, labels[:, None])
    torch.testing.assert_close(dice_ce(logits, labels, torch.ones(4)), theirs)


def test_ignored_voxels_and_weightless_slices_teach_nothing() -> None:
    logits, labels = batch(0)
    labels[:, :3] = IGNORED
    weights = torch.tensor([1.0, 0.5, 0.0, 1.0])
    logits.requires_grad_()
    dice_ce(logits, labels, weights).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, :3].any()
    assert not logits.grad[2].any()
    assert logits.grad[[0, 1, 3], :, 3:].abs().min() > 0
    other = labels.clone()
    other[2, 3:] = 1 - other[2, 3:].clamp(max=1)
    assert dice_ce(logits, other, weights) == dice_ce(logits, labels, weights)


def test_half_the_confidence_pulls_half_as_hard() -> None:
    logits, labels = batch(1)
    full, half = (dice_ce(logits, labels, torch.full((4,), weight)) for weight in (1.0, 0.5))
    torch.testing.assert_close(half, full / 2, rtol=1e-4, atol=1e-6)
    nothing = dice_ce(logits, torch.full_like(labels, IGNORED), torch.ones(4))
    assert float(nothing) == 0.0


@examples(deadline=None, max_examples=50)
@given(
    strategies.lists(strategies.tuples(strategies.sampled_from("abcdefgh"), strategies.booleans()), min_size=4),
    strategies.integers(0, 20),
)
def test_no_patient_who_validates_trains_and_only_experts_validate(items: list[tuple[str, bool]], seed: int) -> None:
    support = support_of(2, len(items))
    support.patients = [patient for patient, _ in items]
    expert = [one for _, one in items]
    settings = SupervisedSettings(validation_patients=3)
    try:
        roles = divide(support, Provenance([1.0] * len(items), expert), settings, seed)
    except SupportError:
        return
    assert all(expert[row] for row in [*roles.expert, *roles.validating])
    assert not any(expert[row] for row in roles.pseudo)
    sides = [{items[row][0] for row in rows} for rows in ([*roles.expert, *roles.pseudo], roles.validating)]
    assert sides[0]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_experts_get_their_share_of_every_batch(share: float) -> None:
    roles = Roles(np.arange(3), np.arange(3, 100), np.arange(0))
    order = Order(roles, share, 0)
    seen = [order.at(place) for place in range(400)]
    for start in range(0, 400, 8):
        assert sum(row < 3 for row in seen[start : start + 8]) == 8 * share
    counts = np.bincount(seen, minlength=100)
    assert np.ptp(counts[:3]) <= 1
    assert np.ptp(counts[3:]) <= 1
    everything = Order(roles, None, 0)
    assert sorted(everything.at(place) for place in range(100)) == list(range(100))


@examples(deadline=None, max_examples=50)
@given(
    strategies.integers(1, 9),
    strategies.integers(0, 20),
    strategies.sampled_from([None, 0.25, 0.5]),
    strategies.integers(0, 9),
    strategies.lists(strategies.integers(0, 200), min_size=1, max_size=40),
)
def test_the_order_is_that_of_shuffled_epochs_whatever_is_asked_first(
    expert: int, pseudo: int, share: float | None, seed: int, places: list[int]
) -> None:
    roles = Roles(np.arange(expert), np.arange(expert, expert + pseudo), np.arange(0))
    mixed = share is not None and pseudo > 0
    rows = roles.expert if mixed else np.arange(expert + pseudo)

    def defined(place: int) -> int:
        before, after = (int((share if mixed else 1.0) * number + 1e-9) for number in (place, place + 1))
        stream, chosen, at = (0, rows, before) if after > before else (1, roles.pseudo, place - before)
        epoch, within = divmod(at, len(chosen))
        key = [seed, epoch] if stream == 0 else [seed, epoch, stream]
        return int(chosen[np.random.default_rng(key).permutation(len(chosen))[within]])

    order = Order(roles, share, seed)
    assert [order.at(place) for place in places] == [defined(place) for place in places]


def test_a_place_of_a_large_set_costs_no_shuffle() -> None:
    order = Order(Roles(np.arange(1000), np.arange(1000, 500_000), np.arange(0)), 0.5, 0)
    order.at(0), order.at(1)
    begin = time.process_time()
    for place in range(2, 1002):
        order.at(place)
    # One shuffle of so many takes 10 ms or so.
    assert time.process_time() - begin < 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0]}, "are of|is of"),
        ({"weights": [1.0] * 11 + [1.5]}, "weight 1.5"),
        ({"ignore": 2}, "label value 2 is a class"),
        ({"expert": [True] * 11 + [False], "validates": [False] * 11 + [True]}, "cannot validate"),
        ({"validates": [True] * 12}, "are of patients who validate"),
    ],
)
def test_a_provenance_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    given_ = {"weights": [1.0] * 12, "expert": [True] * 12} | changes
    with pytest.raises(SupportError, match=message):
        train_supervised(support_of(3), "unet", QUICK, seed=0, device=CPU, provenance=Provenance(**given_))


class KilledError(Exception):
    """What stands for the end of the process."""


def kill_after(rounds: int) -> Callable[[Round], None]:
    seen: list[Round] = []

    def progress(done: Round) -> None:
        seen.append(done)
        if len(seen) == rounds:
            raise KilledError

    return progress


@pytest.mark.parametrize("architecture", ["unet", "segformer"])
def test_a_killed_training_goes_on_to_the_same_weights(architecture: str) -> None:
    support = support_of(6, 18)
    settings = SupervisedSettings(width=4, steps=8, round_steps=2, batch_size=6, validation_patients=5)
    provenance = Provenance([1.0] * 12 + [0.5] * 6, [True] * 12 + [False] * 6)
    kept: list[bytes] = []
    checkpoints = Checkpoints(lambda: kept[-1] if kept else None, kept.append)

    def train(**more: object) -> tuple[str, list[Round]]:
        model, rounds = train_supervised(
            support, architecture, settings, seed=3, device=CPU, provenance=provenance, **more
        )
        return model.digest, rounds

    undisturbed = train()
    assert undisturbed[1][0].validation_dice is not None
    for rounds in (1, 2):
        with pytest.raises(KilledError):
            train(checkpoints=checkpoints, progress=kill_after(rounds))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert train(checkpoints=checkpoints) == undisturbed
    finally:
        torch.set_num_threads(threads)
    # A finished training that is started again does no step.
    assert train(checkpoints=checkpoints, progress=kill_after(1)) == undisturbed
    with pytest.raises(ModelError, match="another training"):
        train_supervised(support, architecture, settings, seed=4, device=CPU, checkpoints=checkpoints)
    kept.append(kept[-1][:2000])
    with pytest.raises(ModelError, match="damaged"):
        train(checkpoints=checkpoints)


@pytest.mark.parametrize("architecture", ["unet", "swin-unetr", "segformer"])
def test_every_network_takes_the_smallest_slices(architecture: str) -> None:
    settings = SupervisedSettings(width=4, steps=2, round_steps=1, batch_size=2, image_size=32)
    support = support_of(2)
    model, rounds = train_supervised(support, architecture, settings, seed=0, device=CPU)
    assert [one.step for one in rounds] == [1, 2]
    [found] = SupervisedSegmenter(model, CPU).label([support.image(0)])
    assert found.labels.shape == support.mask(0).shape


@pytest.mark.parametrize("architecture", ["swin-unetr", "segformer"])
def test_weights_of_transformers_do_not_depend_on_threads(architecture: str) -> None:
    support, threads, digests = support_of(2), torch.get_num_threads(), []
    settings = SupervisedSettings(width=4, steps=2, round_steps=2)
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            digests.append(train_supervised(support, architecture, settings, seed=1, device=CPU)[0].digest)
        finally:
            torch.set_num_threads(threads)
    assert digests[0] == digests[1]

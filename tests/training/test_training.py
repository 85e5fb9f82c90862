"""Supervised baselines: training, the model as bytes, its labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from discs import draw, support_of
from hypothesis import given, strategies
from hypothesis import settings as examples

from rfss_core.errors import ModelError, SupportError
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.settings import SupervisedSettings
from rfss_core.training import Round, SupervisedModel, SupervisedSegmenter, train_supervised
from rfss_core.training.architecture import MULTIPLE
from rfss_core.training.augmentation import Augmentation
from rfss_core.training.canvas import Canvas
from rfss_core.training.labelled import split_slices

CPU = torch.device("cpu")
QUICK = SupervisedSettings(width=4, steps=3, round_steps=2)
NEAR = Neighbours(np.array([0]), np.array([0.0], np.float32))


@pytest.fixture(scope="module")
def trained() -> tuple[SupportSet, SupervisedModel, list[Round]]:
    support = support_of(3)
    settings = SupervisedSettings(width=8, steps=60, round_steps=20)
    model, rounds = train_supervised(support, "unet", settings, seed=0, device=CPU)
    return support, model, rounds


def test_it_learns_what_the_slices_show(trained: tuple[SupportSet, SupervisedModel, list[Round]]) -> None:
    support, model, rounds = trained
    assert [done.step for done in rounds] == [20, 40, 60]
    assert rounds[-1].loss < rounds[0].loss
    assert all(done.validation_dice is None for done in rounds)
    queries, truths = zip(*(draw(number) for number in range(100, 104)), strict=True)
    found = SupervisedSegmenter(model, CPU).segment(list(queries), [NEAR] * 4, support)
    labels, truth = np.stack([one.labels for one in found]), np.stack(truths)
    for value in (2, 5):
        both, sizes = ((labels == value) & (truth == value)).sum(), (labels == value).sum() + (truth == value).sum()
        assert 2 * both / sizes > 0.8
    for one in found:
        assert one.logits is not None
        # A class whose odds are above even wins its pixel, and an object score is its best pixel.
        assert (one.labels[one.logits[0] > 0] == 2).all()
        np.testing.assert_array_equal(one.object_score, one.logits.max((1, 2)))
        assert ((one.predicted_iou > 0) & (one.predicted_iou <= 1)).all()


def test_weights_do_not_depend_on_threads() -> None:
    support, threads = support_of(2), torch.get_num_threads()
    digests = []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            digests.append(train_supervised(support, "unet", QUICK, seed=1, device=CPU)[0].digest)
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
    assert digests[0] == digests[1]
    assert train_supervised(support, "unet", QUICK, seed=2, device=CPU)[0].digest != digests[0]


def test_a_model_survives_its_bytes(trained: tuple[SupportSet, SupervisedModel, list[Round]]) -> None:
    support, model, _ = trained
    copy = SupervisedModel.from_bytes(model.to_bytes())
    assert copy.spec == model.spec
    assert copy.digest == model.digest
    query = draw(7, (70, 33))[0]
    one, other = (SupervisedSegmenter(each, CPU).segment([query], [NEAR], support)[0] for each in (model, copy))
    assert one.labels.shape == (70, 33)
    np.testing.assert_array_equal(one.logits, other.logits)


@pytest.mark.parametrize("spoil", [lambda data: data[:100], lambda data: b"PK" + data, lambda _: b""])
def test_other_bytes_are_no_model(trained: tuple[SupportSet, SupervisedModel, list[Round]], spoil) -> None:
    with pytest.raises(ModelError, match="train it again"):
        SupervisedModel.from_bytes(spoil(trained[1].to_bytes()))


def test_labels_do_not_depend_on_company_or_asked_classes(
    trained: tuple[SupportSet, SupervisedModel, list[Round]],
) -> None:
    support, model, _ = trained
    segmenter = SupervisedSegmenter(model, CPU)
    queries = [draw(number)[0] for number in range(50, 54)]
    together = segmenter.segment(queries, [NEAR] * 4, support)
    for query, before in zip(queries, together, strict=True):
        alone = segmenter.segment([query], [NEAR], support, keep_logits=False)[0]
        np.testing.assert_array_equal(alone.labels, before.labels)
        assert alone.logits is None
        only = segmenter.segment([query], [NEAR], support, classes=[5])[0]
        assert set(np.unique(only.labels)) <= {0, 5}
        np.testing.assert_array_equal(only.object_score, before.object_score[1:])
    strange = SupportSet.from_arrays([queries[0]], [np.full(queries[0].shape, 9)])
    with pytest.raises(SupportError, match=r"was trained on classes \[2, 5\], not on 9"):
        segmenter.segment(queries[:1], [NEAR], strange)


def test_validation_patients_choose_the_weights_and_stop_the_training() -> None:
    support = support_of(6, 18)
    settings = SupervisedSettings(width=4, steps=16, round_steps=2, patience=2, batch_size=4)
    seen: list[Round] = []
    _, rounds = train_supervised(support, "unet", settings, seed=0, device=CPU, progress=seen.append)
    assert seen == rounds
    scores = [done.validation_dice or 0.0 for done in rounds]
    best = scores.index(max(scores))
    assert rounds[-1].step == settings.steps or len(rounds) - 1 - best == settings.patience


@examples(deadline=None)
@given(
    strategies.lists(strategies.sampled_from("abcdefgh"), min_size=1, max_size=30),
    strategies.floats(0, 0.5),
    strategies.integers(0, 99),
)
def test_no_patient_trains_and_validates(patients: list[str], share: float, seed: int) -> None:
    settings = SupervisedSettings(validation_share=share, validation_patients=4)
    training, validating = split_slices(patients, settings, seed)
    assert sorted([*training, *validating]) == list(range(len(patients)))
    assert len(training) > 0
    sides = [{patients[index] for index in side} for side in (training, validating)]
    assert not sides[0] & sides[1]
    assert bool(sides[1]) == (share > 0 and len(set(patients)) >= 4)


@examples(deadline=None, max_examples=60)
@given(strategies.integers(1, 90), strategies.integers(1, 90), strategies.sampled_from([32, 64, 256]))
def test_what_fits_the_canvas_comes_back_untouched(height: int, width: int, longest: int) -> None:
    canvas = Canvas.around([(height, width)], longest)
    assert canvas.height % MULTIPLE == 0 == canvas.width % MULTIPLE
    assert max(canvas.fitted((height, width))) <= max(longest, MULTIPLE)
    mask = np.random.default_rng(height).integers(0, 3, (height, width), dtype=np.uint8)
    placed = canvas.labels(mask)
    assert tuple(placed.shape) == (canvas.height, canvas.width)
    back = canvas.native(placed[None].float(), (height, width))[0]
    assert tuple(back.shape) == (height, width)
    if max(height, width) <= longest:
        np.testing.assert_array_equal(back.numpy(), mask)
    image = canvas.image(np.stack([mask / 2.0] * 3, axis=-1), 1)
    assert tuple(image.shape) == (1, canvas.height, canvas.width)
    assert torch.isfinite(image).all()


def test_augmentation_is_the_seeds_and_invents_no_class() -> None:
    image, mask = draw(3)
    canvas = Canvas(64, 64)
    planes, labels = canvas.image(image, 1), canvas.labels(mask)
    vary = Augmentation(canvas)
    first, again, other = (vary(planes, labels, seed) for seed in (1, 1, 2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    for number in range(20):
        varied, moved = vary(planes, labels, number)
        assert varied.shape == planes.shape
        assert set(moved.unique().tolist()) <= {0, 2, 5}
        assert type(varied) is type(moved) is torch.Tensor


def test_colour_is_kept_and_grey_queries_still_work() -> None:
    images = [np.stack([draw(number)[0]] * 3, axis=-1) for number in range(4)]
    support = SupportSet.from_arrays(images, [draw(number)[1] for number in range(4)])
    model, _ = train_supervised(support, "unet", QUICK, seed=0, device=CPU)
    assert model.spec.channels == 3
    found = SupervisedSegmenter(model, CPU).segment([images[0], draw(0)[0]], [NEAR] * 2, support)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)


def test_swin_unetr_trains_and_survives_its_bytes() -> None:
    support, one_step = support_of(2, 4), SupervisedSettings(width=4, steps=1, batch_size=1)
    model, _ = train_supervised(support, "swin-unetr", one_step, seed=0, device=CPU)
    assert model.spec.architecture == "swin-unetr"
    copy = SupervisedModel.from_bytes(model.to_bytes())
    one, other = (SupervisedSegmenter(each, CPU).segment([draw(9)[0]], [NEAR], support)[0] for each in (model, copy))
    np.testing.assert_array_equal(one.logits, other.logits)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match="'vgg' is not known; choose one of segformer, swin-unetr, unet"):
        train_supervised(support_of(2), "vgg", QUICK, seed=0, device=CPU)

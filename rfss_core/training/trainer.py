"""Supervised training on a few labelled slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rfss_core.errors import SupportError
from rfss_core.segmentation.segmenter import Supports, read_support
from rfss_core.settings import SupervisedSettings
from rfss_core.training.augmentation import Augmentation
from rfss_core.training.canvas import Canvas
from rfss_core.training.model import NetworkSpec, SupervisedModel

_PIECE = 4
_WARMUP = 20
_CLIP = 1.0


class LabelledSlices(Supports, Protocol):
    """Slices to train on, read when they are asked for; a :class:`rfss_core.retrieval.SupportSet` is one."""

    @property
    def patients(self) -> Sequence[str]:
        """Patient of each slice."""


@dataclass(frozen=True)
class Round:
    """Where a training is after some steps."""

    step: int
    steps: int
    """Steps at most."""
    loss: float
    """Mean over the round."""
    validation_dice: float | None
    """Mean over validation patients and classes; None without validation patients."""


@dataclass
class _Task:
    """What does not change during a training."""

    data: LabelledSlices
    spec: NetworkSpec
    settings: SupervisedSettings
    seed: int
    device: torch.device

    def sample(self, index: int) -> tuple[Tensor, Tensor]:
        """Return slice ``index`` on the canvas: float32 [C, H, W] and class indices int64 [H, W]."""
        image, mask = read_support(self.data, index)
        lookup = torch.zeros(256, dtype=torch.long)
        for place, value in enumerate(self.spec.classes, 1):
            lookup[value] = place
        return self.spec.canvas.image(image, self.spec.channels), lookup[self.spec.canvas.labels(mask).long()]


def train_supervised(
    data: LabelledSlices,
    architecture: str,
    settings: SupervisedSettings,
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[Round], None] = lambda _: None,
) -> tuple[SupervisedModel, list[Round]]:
    """Train a network on labelled slices, all classes at once.

    Dice and cross-entropy, AdamW with a short warm-up and a cosine down to zero. With ``settings.validation_patients``
    patients or more, some of them (whole patients) only choose the best round and stop the training early; the others
    train. With fewer, all slices train for the fixed number of steps and the last weights count: one of three patients
    would cost a third of the training data to choose between neighbouring rounds.

    On the CPU a step is cut into pieces of a fixed number of slices, each on one thread, so the weights do not depend
    on the number of threads.

    Args:
        data: labelled slices, of any sizes.
        architecture: see :func:`rfss_core.training.architecture.build_network`.
        settings: of the training.
        seed: of weights, validation patients, order and augmentation.
        device: where to train.
        progress: called after every round, in this thread.

    Returns:
        The trained model and its rounds.

    Raises:
        SupportError: no slices or no class, or a mask that does not fit its image.
        ModelError: an unknown architecture.
    """
    if len(data) == 0 or not data.classes:
        raise SupportError(f"{len(data)} slices with classes {dict(data.classes)} cannot train a network; label some")
    images = [data.image(index) for index in range(len(data))]
    spec = NetworkSpec(
        architecture,
        3 if any(image.ndim == 3 for image in images) else 1,
        tuple(sorted(data.classes)),
        settings.width,
        Canvas.around([(image.shape[0], image.shape[1]) for image in images], settings.image_size),
    )
    del images
    task = _Task(data, spec, settings, seed, device)
    training, validating = split_slices(data.patients, settings, seed)
    network = spec.build(seed).to(device).train()
    with _pool(device) as pool:
        rounds, best = _fit(task, network, training, validating, pool, progress)
    if best is not None:
        network.load_state_dict(best)
    return SupervisedModel(spec, network.cpu().eval().requires_grad_(requires_grad=False)), rounds


def split_slices(
    patients: Sequence[str], settings: SupervisedSettings, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide slices into those that train and those whose patients validate; the second may be empty.

    Args:
        patients: of each slice.
        settings: share and least number of patients.
        seed: of the draw.

    Returns:
        Indices of both.
    """
    names = sorted(set(patients))
    count = 0
    if settings.validation_share and len(names) >= settings.validation_patients:
        count = max(1, round(settings.validation_share * len(names)))
    drawn = np.random.default_rng([seed, len(names)]).permutation(len(names))[:count]
    validates = np.isin(np.asarray(patients), [names[place] for place in drawn])
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _fit(
    task: _Task,
    network: torch.nn.Module,
    training: npt.NDArray[np.int64],
    validating: npt.NDArray[np.int64],
    pool: ThreadPoolExecutor,
    progress: Callable[[Round], None],
) -> tuple[list[Round], dict[str, Tensor] | None]:
    settings = task.settings
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)
    size = settings.batch_size if task.device.type == "cuda" else _PIECE
    slots = range(0, settings.batch_size, size)
    augmentations = [Augmentation(task.spec.canvas) for _ in slots]
    loss_of = _loss()
    rounds: list[Round] = []
    losses: list[float] = []
    best, stale = None, 0

    def piece(step: int, start: int) -> tuple[float, tuple[Tensor, ...]]:
        places = range(
            step * settings.batch_size + start, step * settings.batch_size + min(start + size, settings.batch_size)
        )
        vary = augmentations[start // size]
        pairs = [vary(*task.sample(_draw(training, task.seed, place)), _mixed(task.seed, place)) for place in places]
        images, labels = (torch.stack(planes).to(task.device) for planes in zip(*pairs, strict=True))
        enabled = settings.autocast and task.device.type == "cuda"
        with torch.autocast(task.device.type, torch.bfloat16, enabled=enabled):
            logits = network(images)
        loss = loss_of(logits.float(), labels[:, None]) * (len(pairs) / settings.batch_size)
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    def update(step: int, parts: list[tuple[Tensor, ...]]) -> None:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        for parameter, *gradients in zip(parameters, *parts, strict=True):
            parameter.grad = torch.stack(gradients).sum(0) if len(gradients) > 1 else gradients[0]
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()

    for step in range(settings.steps):
        parts = list(pool.map(lambda start, step=step: piece(step, start), slots))
        # In the pool too: on busy cores the threads of a parallel loop spend their time waiting for each other.
        pool.submit(update, step, [gradients for _, gradients in parts]).result()
        losses.append(math.fsum(loss for loss, _ in parts))
        if (step + 1) % settings.round_steps and step + 1 < settings.steps:
            continue
        dice = _validate(task, network, validating, pool) if len(validating) else None
        rounds.append(Round(step + 1, settings.steps, float(np.mean(losses)), dice))
        losses.clear()
        progress(rounds[-1])
        if dice is None:
            continue
        if dice > max((other.validation_dice or 0.0 for other in rounds[:-1]), default=-1.0):
            best, stale = {name: value.detach().clone() for name, value in network.state_dict().items()}, 0
        else:
            stale += 1
        if stale >= settings.patience:
            break
    return rounds, best


def _validate(
    task: _Task, network: torch.nn.Module, validating: npt.NDArray[np.int64], pool: ThreadPoolExecutor
) -> float:
    """Return the mean Dice over validation patients and the classes that they show, on the canvas."""
    planes = 1 + len(task.spec.classes)

    def counts(index: int) -> npt.NDArray[np.int64]:
        image, truth = task.sample(index)
        with torch.inference_mode():
            found = network(image[None].to(task.device))[0].argmax(0).cpu()
        pairs = torch.bincount((truth * planes + found).flatten(), minlength=planes**2).reshape(planes, planes)
        return np.stack([pairs.diagonal().numpy(), (pairs.sum(0) + pairs.sum(1)).numpy(), pairs.sum(1).numpy()])

    network.eval()
    by_patient: dict[str, Any] = {}
    for index, found in zip(validating, pool.map(counts, [int(i) for i in validating]), strict=True):
        patient = task.data.patients[int(index)]
        by_patient[patient] = by_patient.get(patient, 0) + found
    network.train()
    scores = [2 * both / total for found in by_patient.values() for both, total, shown in found[:, 1:].T if shown]
    return float(np.mean(scores)) if scores else 0.0


def _loss() -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses.dice import DiceCELoss

    found: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=True
    )
    return found


def _draw(training: npt.NDArray[np.int64], seed: int, place: int) -> int:
    """Return the slice at a place of the endless sequence of shuffled epochs."""
    epoch, within = divmod(place, len(training))
    return int(training[np.random.default_rng([seed, epoch]).permutation(len(training))[within]])


def _mixed(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _rate(step: int, steps: int) -> float:
    warmup = min(_WARMUP, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@contextmanager
def _pool(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    with ThreadPoolExecutor(threads, initializer=_single if device.type == "cpu" else None) as pool:
        try:
            yield pool
        finally:
            # torch remembers the last number that any thread set, for threads that start later.
            torch.set_num_threads(threads)


def _single() -> None:
    torch.set_num_threads(1)

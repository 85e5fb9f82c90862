"""Supervised training on labelled slices: the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rfss_core.digest import digest_json
from rfss_core.errors import SupportError
from rfss_core.segmentation.segmenter import read_support
from rfss_core.settings import SupervisedSettings
from rfss_core.training.architecture import LEAST, MULTIPLE
from rfss_core.training.augmentation import Augmentation
from rfss_core.training.canvas import Canvas
from rfss_core.training.checkpoint import Checkpoints, Progress, Round, State
from rfss_core.training.labelled import LabelledSlices, Order, Provenance, divide
from rfss_core.training.loss import IGNORED, dice_ce
from rfss_core.training.model import NetworkSpec, SupervisedModel

_PIECE = 4
_WARMUP = 20
_CLIP = 1.0
_WEIGHT_DECAY = 1e-4

HABITS = {
    "optimizer": "AdamW",
    "weight_decay": _WEIGHT_DECAY,
    "schedule": "linear warm-up, cosine to 0",
    "warmup_steps": _WARMUP,
    "gradient_clip": _CLIP,
    "loss": "Dice and cross-entropy",
}
"""What every training does and no setting says; a run's record names it."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Images [N, C, H, W], class indices [N, H, W], weights [N]."""


@dataclass
class _Task:
    """What does not change during a training."""

    data: LabelledSlices
    provenance: Provenance | None
    spec: NetworkSpec
    settings: SupervisedSettings
    seed: int
    device: torch.device
    lookup: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lookup = torch.zeros(256, dtype=torch.long)
        for place, value in enumerate(self.spec.classes, 1):
            self.lookup[value] = place
        if self.provenance is not None and self.provenance.ignore is not None:
            self.lookup[self.provenance.ignore] = IGNORED

    def sample(self, index: int) -> tuple[Tensor, Tensor]:
        """Return slice ``index`` on the canvas: float32 [C, H, W] and class indices int64 [H, W]."""
        image, mask = read_support(self.data, index)
        return self.spec.canvas.image(image, self.spec.channels), self.lookup[self.spec.canvas.labels(mask).long()]

    def weight(self, index: int) -> float:
        """Return the confidence of slice ``index``."""
        return 1.0 if self.provenance is None else float(self.provenance.weights[index])

    @property
    def key(self) -> str:
        """Digest of what a checkpoint belongs to; where the slices' content may change, the caller keeps it apart."""
        return digest_json(
            {
                "spec": asdict(self.spec),
                "settings": self.settings.model_dump(mode="json"),
                "seed": self.seed,
                "device": self.device.type,
                "slices": list(self.data.ids),
                "provenance": None if self.provenance is None else _plain(self.provenance),
            }
        )


def train_supervised(
    data: LabelledSlices,
    architecture: str,
    settings: SupervisedSettings,
    *,
    seed: int,
    device: torch.device,
    provenance: Provenance | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[Round], None] = lambda _: None,
) -> tuple[SupervisedModel, list[Round]]:
    """Train a network on labelled slices, all classes at once.

    Dice and cross-entropy, AdamW with a short warm-up and a cosine down to zero. With ``settings.validation_patients``
    patients or more, some of them (whole patients) only choose the best round and stop the training early; the others
    train. With fewer, all slices train for the fixed number of steps and the last weights count: one of three patients
    would cost a third of the training data to choose between neighbouring rounds.

    On the CPU a step is cut into pieces of a fixed number of slices, each on one thread, so the weights do not depend
    on the number of threads, nor on where a training was interrupted.

    Args:
        data: labelled slices, of any sizes.
        architecture: see :func:`rfss_core.training.architecture.build_network`.
        settings: of the training.
        seed: of weights, validation patients, order and augmentation.
        device: where to train.
        provenance: confidence, experts and ignored voxels where not all labels are experts'.
        checkpoints: read at the start, written after every round; the caller removes them.
        progress: called after every round, in this thread; of a resumed training only for the rounds that are new.

    Returns:
        The trained model and its rounds.

    Raises:
        SupportError: no slices or no class, a mask that does not fit its image, or a provenance that does not fit.
        ModelError: an unknown architecture, or a checkpoint of another training.
    """
    if len(data) == 0 or not data.classes:
        raise SupportError(f"{len(data)} slices with classes {dict(data.classes)} cannot train a network; label some")
    roles = divide(data, provenance, settings, seed)
    shapes = [data.image(index).shape for index in range(len(data))]
    spec = NetworkSpec(
        architecture,
        3 if any(len(shape) == 3 for shape in shapes) else 1,
        tuple(sorted(data.classes)),
        settings.width,
        Canvas.around(
            [(shape[0], shape[1]) for shape in shapes], settings.image_size, LEAST.get(architecture, MULTIPLE)
        ),
    )
    task = _Task(data, provenance, spec, settings, seed, device)
    network = spec.build(seed).to(device).train()
    state = State(
        task.key,
        network,
        torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY),
        torch.amp.GradScaler(device.type, enabled=_precision(task) == torch.float16),
        Progress(),
    )
    if checkpoints is not None and (known := checkpoints.read()) is not None:
        state.restore(known)
    with _pool() as pool:
        source = _Batches(task, Order(roles, settings.expert_share, seed), pool)
        _fit(task, state, source, roles.validating, pool, checkpoints, progress)
    if state.progress.best is not None:
        network.load_state_dict(state.progress.best)
    model = SupervisedModel(spec, network.cpu().eval().requires_grad_(requires_grad=False))
    return model, state.progress.rounds


def _fit(
    task: _Task,
    state: State,
    source: _Batches,
    validating: npt.NDArray[np.int64],
    pool: ThreadPoolExecutor,
    checkpoints: Checkpoints | None,
    progress: Callable[[Round], None],
) -> None:
    """Train until the steps are done or the validation Dice stops rising."""
    settings, known, losses = task.settings, state.progress, list[float]()
    for step in range(known.step, settings.steps):
        if known.stale >= settings.patience:
            break
        parts = source.gradients(step, state)
        # In the pool too: on busy cores the threads of a parallel loop spend their time waiting for each other.
        pool.submit(_update, task, state, step, [gradients for _, gradients in parts]).result()
        losses.append(math.fsum(loss for loss, _ in parts))
        if (step + 1) % settings.round_steps and step + 1 < settings.steps:
            continue
        dice = _validate(task, state.network, validating, pool) if len(validating) else None
        if dice is not None and dice > max((other.validation_dice or 0.0 for other in known.rounds), default=-1.0):
            known.best = {name: value.detach().clone() for name, value in state.network.state_dict().items()}
            known.stale = 0
        elif dice is not None:
            known.stale += 1
        known.rounds.append(Round(step + 1, settings.steps, float(np.mean(losses)), dice))
        losses.clear()
        if checkpoints is not None:
            checkpoints.write(state.to_bytes())
        progress(known.rounds[-1])


class _Batches:
    """Gradients of the steps of a training.

    On the CPU each thread of the pool computes pieces of a step. On CUDA the step is one batch, and the pool prepares
    the next one meanwhile.
    """

    def __init__(self, task: _Task, order: Order, pool: ThreadPoolExecutor) -> None:
        self._task, self._order, self._pool = task, order, pool
        self._slots = range(0, task.settings.batch_size, _PIECE)
        self._augmentations = [Augmentation(task.spec.canvas) for _ in self._slots]
        self._ahead: tuple[int, list[Future[Batch]]] = (-1, [])

    def gradients(self, step: int, state: State) -> list[tuple[float, tuple[Tensor, ...]]]:
        """Return loss and gradients of each piece of a step."""
        parameters = list(state.network.parameters())
        if self._task.device.type == "cpu":
            return list(
                self._pool.map(
                    lambda start: self._gradients(self._prepared(step, start), state, parameters), self._slots
                )
            )
        expected, waiting = self._ahead
        if expected != step:
            waiting = self._prepare(step)
        pieces = [one.result() for one in waiting]
        self._ahead = (step + 1, self._prepare(step + 1)) if step + 1 < self._task.settings.steps else (-1, [])
        images, labels, weights = (torch.cat(planes) for planes in zip(*pieces, strict=True))
        return [self._gradients((images, labels, weights), state, parameters)]

    def _prepare(self, step: int) -> list[Future[Batch]]:
        return [self._pool.submit(self._prepared, step, start) for start in self._slots]

    def _prepared(self, step: int, start: int) -> Batch:
        task, size = self._task, self._task.settings.batch_size
        places = range(step * size + start, step * size + min(start + _PIECE, size))
        rows = [self._order.at(place) for place in places]
        vary = self._augmentations[start // _PIECE]
        pairs = [vary(*task.sample(row), _mixed(task.seed, place)) for row, place in zip(rows, places, strict=True)]
        images, labels = (torch.stack(planes) for planes in zip(*pairs, strict=True))
        return images, labels, torch.tensor([task.weight(row) for row in rows])

    def _gradients(
        self, batch: Batch, state: State, parameters: list[torch.nn.Parameter]
    ) -> tuple[float, tuple[Tensor, ...]]:
        device, half = self._task.device, _precision(self._task)
        images, labels, weights = (part.to(device) for part in batch)
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            logits = state.network(images)
        loss = dice_ce(logits.float(), labels, weights) * (len(images) / self._task.settings.batch_size)
        return float(loss.detach()), torch.autograd.grad(state.scaler.scale(loss), parameters)


def _update(task: _Task, state: State, step: int, parts: list[tuple[Tensor, ...]]) -> None:
    parameters = list(state.network.parameters())
    for group in state.optimizer.param_groups:
        group["lr"] = task.settings.learning_rate * _rate(step, task.settings.steps)
    for parameter, *gradients in zip(parameters, *parts, strict=True):
        parameter.grad = torch.stack(gradients).sum(0) if len(gradients) > 1 else gradients[0]
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
    state.scaler.step(state.optimizer)
    state.scaler.update()


def _validate(
    task: _Task, network: torch.nn.Module, validating: npt.NDArray[np.int64], pool: ThreadPoolExecutor
) -> float:
    """Return the mean Dice over validation patients and the classes that they show, on the canvas."""
    planes = 1 + len(task.spec.classes)

    def counts(index: int) -> npt.NDArray[np.int64]:
        image, truth = task.sample(index)
        with torch.inference_mode():
            found = network(image[None].to(task.device))[0].argmax(0).cpu()
        known = truth != IGNORED
        pairs = torch.bincount((truth * planes + found)[known], minlength=planes**2).reshape(planes, planes)
        return np.stack([pairs.diagonal().numpy(), (pairs.sum(0) + pairs.sum(1)).numpy(), pairs.sum(1).numpy()])

    network.eval()
    by_patient: dict[str, Any] = {}
    for index, found in zip(validating, pool.map(counts, [int(i) for i in validating]), strict=True):
        patient = task.data.patients[int(index)]
        by_patient[patient] = by_patient.get(patient, 0) + found
    network.train()
    scores = [2 * both / total for found in by_patient.values() for both, total, shown in found[:, 1:].T if shown]
    return float(np.mean(scores)) if scores else 0.0


def _precision(task: _Task) -> torch.dtype | None:
    """Return the arithmetic of mixed precision, None without it."""
    if not task.settings.autocast or task.device.type != "cuda":
        return None
    return torch.float16 if task.settings.half == "float16" else torch.bfloat16


def _plain(provenance: Provenance) -> dict[str, Any]:
    def listed(values: Sequence[Any] | None, kind: type) -> list[Any] | None:
        return None if values is None else [kind(value) for value in values]

    return {
        "weights": listed(provenance.weights, float),
        "expert": listed(provenance.expert, bool),
        "validates": listed(provenance.validates, bool),
        "ignore": provenance.ignore,
    }


def _mixed(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _rate(step: int, steps: int) -> float:
    warmup = min(_WARMUP, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose threads compute alone: those of the CPU's training, or of preparing slices for a GPU."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=_single) as pool:
        try:
            yield pool
        finally:
            # torch remembers the last number that any thread set, for threads that start later.
            torch.set_num_threads(threads)


def _single() -> None:
    torch.set_num_threads(1)

"""How good a pair of models is on patients that never trained: retrieval and segmentation, beside simple baselines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rfss_core.errors import SupportError
from rfss_core.pretraining.conditioning import Features, InContextSam2, Memories
from rfss_core.pretraining.embedder import embed, label_agreement
from rfss_core.pretraining.source import ACDC, Slices, find_source, parts_of, read_source

Strategy = Literal["dino", "random", "pixels"]
BATCH = 16


@dataclass(frozen=True)
class Protocol:
    """How one measurement is made."""

    support_slices: int = 50
    support_patients: int = 3
    """At least so many patients share the support slices; more where these have too few."""
    query_patients: int = 6
    """Patients whose slices are segmented, drawn anew for each seed."""
    k: int = 8
    strategy: Strategy = "dino"
    object_score_threshold: float | None = 0.0


@dataclass(frozen=True)
class Split:
    """Support and queries of one seed."""

    support: Slices
    queries: Slices


def held_out_slices(data: Path, name: str, part: str = "test") -> Slices:
    """Read the slices (last axis only) of one part of a set; all patients of ACDC, which never trains.

    The two copies of HC18 count as one set, ``fetal-head``.
    """
    source = find_source(name)
    slices = read_source(data, source, strides=(0, 0, 1), size=256)
    if source is ACDC:
        return slices
    parts = parts_of(data, source.split_set)
    return slices.take(np.array([i for i, p in enumerate(slices.patients) if parts[str(p)] == part], dtype=np.int64))


def split(slices: Slices, protocol: Protocol, seed: int, pool: Slices | None = None) -> Split:
    """Divide patients into support and queries, and draw the support slices evenly over the support patients.

    Support slices show some class; queries are whole volumes.

    Args:
        slices: patients to measure on.
        protocol: how many of everything.
        seed: of the draw.
        pool: other patients, who give all support slices; None divides ``slices``.

    Raises:
        SupportError: too few patients to have both sides.
    """
    generator = np.random.default_rng(seed)
    if pool is not None:
        support = split(pool, protocol, seed).support
        chosen_queries = generator.permutation(np.unique(slices.patients))[: protocol.query_patients]
        return Split(support, slices.take(np.flatnonzero(np.isin(slices.patients, chosen_queries))))
    patients = generator.permutation(np.unique(slices.patients))
    shown = slices.labels.reshape(len(slices), -1).any(1)
    chosen: list[str] = []
    for patient in patients:
        candidates = np.isin(slices.patients, chosen) & shown
        if len(chosen) >= protocol.support_patients and candidates.sum() >= protocol.support_slices:
            break
        chosen.append(str(patient))
    rest = [str(patient) for patient in patients if str(patient) not in chosen][: protocol.query_patients]
    if not rest:
        raise SupportError(
            f"{len(patients)} patients cannot give {protocol.support_slices} support slices and a query; "
            "lower support_slices"
        )
    index = np.concatenate(
        [
            generator.permutation(np.flatnonzero((slices.patients == patient) & shown))[: _share(protocol, chosen, i)]
            for i, patient in enumerate(chosen)
        ]
    )
    return Split(slices.take(index), slices.take(np.flatnonzero(np.isin(slices.patients, rest))))


def _share(protocol: Protocol, chosen: list[str], place: int) -> int:
    return protocol.support_slices // len(chosen) + (place < protocol.support_slices % len(chosen))


def pixels(slices: Slices, size: int) -> Tensor:
    """Return images [N, size, size] float32 in [0, 1]."""
    images = torch.from_numpy(slices.images).float()[:, None] / 255
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[:, 0]


@torch.no_grad()
def neighbours(embedder: Any, parts: Split, protocol: Protocol, seed: int) -> npt.NDArray[np.int64]:
    """Return the k nearest support slices of every query, nearest first, [Q, k]."""
    k = min(protocol.k, len(parts.support))
    if protocol.strategy == "random":
        generator = np.random.default_rng(seed + 1)
        return np.stack([generator.permutation(len(parts.support))[:k] for _ in range(len(parts.queries))])
    described = []
    for side in (parts.queries, parts.support):
        if protocol.strategy == "pixels":
            described.append(functional.normalize(pixels(side, 32).flatten(1), dim=1))
        else:
            images = pixels(side, embedder.config.image_size)
            described.append(torch.cat([embed(embedder, batch) for batch in torch.split(images, 64)]))
    similarity = described[0] @ described[1].T
    return similarity.topk(k, dim=1).indices.numpy().astype(np.int64)


def retrieval_agreement(parts: Split, nearest: npt.NDArray[np.int64]) -> float:
    """Return the mean Dice between a query's label map and its neighbours' (queries that show a class)."""
    labels = torch.from_numpy(np.concatenate([parts.queries.labels, parts.support.labels])).long()
    agreement = label_agreement(labels)[: len(parts.queries), len(parts.queries) :]
    shown = torch.from_numpy(parts.queries.labels.reshape(len(parts.queries), -1).any(1))
    return float(agreement.gather(1, torch.from_numpy(nearest)).mean(1)[shown].mean())


@torch.no_grad()
def segment(model: Any, parts: Split, nearest: npt.NDArray[np.int64], protocol: Protocol) -> tuple[Tensor, float]:
    """Segment all queries.

    Returns:
        Label maps [Q, S, S] uint8 on the queries' grid, and queries a second (supports encoded before).
    """
    context = InContextSam2(model).eval()
    size = int(model.config.image_size)
    classes = [int(value) for value in np.unique(parts.support.labels) if value]
    shown, supports = pixels(parts.queries, size), pixels(parts.support, size)
    banks = []
    for value in classes:
        masks = _masks(parts.support, value, size)
        batches = zip(torch.split(supports, BATCH), torch.split(masks, BATCH), strict=True)
        banks.append((masks, [context.remember(context.encode(images), mask) for images, mask in batches]))
    memories = [(masks, _joined(bank)) for masks, bank in banks]
    k = nearest.shape[1]
    # As in rfss_core.segmentation: supports are frames 0 to k - 1, nearest first, and the query is frame k.
    offsets = torch.arange(k, 0, -1).float() / max(1, min(k + 1, 16) - 1)
    answers = []
    started = time.perf_counter()
    for start in range(0, len(shown), BATCH):
        features = context.encode(shown[start : start + BATCH])
        index = torch.from_numpy(nearest[start : start + BATCH])
        logits = torch.zeros(len(index), 1 + len(classes), *parts.queries.labels.shape[1:])
        for plane, (masks, bank) in enumerate(memories, 1):
            logits[:, plane] = _one_class(context, features, bank, masks, index, offsets, protocol, logits.shape[-1])
        answers.append(logits.argmax(1))
    seconds = time.perf_counter() - started
    lookup = torch.tensor([0, *classes], dtype=torch.uint8)
    return lookup[torch.cat(answers)], len(shown) / seconds


def _one_class(
    context: InContextSam2,
    features: Features,
    bank: Memories,
    masks: Tensor,
    index: Tensor,
    offsets: Tensor,
    protocol: Protocol,
    size: int,
) -> Tensor:
    count, k = index.shape
    flat = index.flatten()
    assert bank.pointers is not None
    chosen = Memories(bank.tokens[flat], bank.pointers[flat], None)
    conditioned, label = context.attend(
        features.coarse[:, None],
        features.position,
        chosen,
        torch.ones(count, 1, k, dtype=torch.bool),
        offsets.expand(count, -1),
        masks[flat],
    )
    answer = context.decode(conditioned[:, 0], features, label[:, 0])
    logits = functional.interpolate(answer.best()[:, None], size=(size, size), mode="bilinear", align_corners=False)
    if protocol.object_score_threshold is None:
        return logits[:, 0]
    gated = answer.object_score > protocol.object_score_threshold
    return torch.where(gated[:, None, None], logits[:, 0], -1024.0)


def _masks(slices: Slices, value: int, size: int) -> Tensor:
    masks = torch.from_numpy(slices.labels == value).float()[:, None]
    return functional.interpolate(masks, size=(size, size), mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


def _joined(bank: list[Memories]) -> Memories:
    pointers = [memories.pointers for memories in bank if memories.pointers is not None]
    return Memories(torch.cat([memories.tokens for memories in bank]), torch.cat(pointers), None)


def fuse(parts: Split, nearest: npt.NDArray[np.int64]) -> Tensor:
    """Return the majority vote [Q, S, S] of the retrieved label maps: the floor every model must beat."""
    labels = torch.from_numpy(parts.support.labels)
    classes = [int(value) for value in torch.unique(labels)]
    votes = []
    for index in torch.from_numpy(nearest):
        counts = torch.stack([(labels[index] == value).sum(0) for value in classes])
        votes.append(counts.argmax(0))
    return torch.tensor(classes, dtype=torch.uint8)[torch.stack(votes)]


def case_dice(parts: Split, predicted: Tensor) -> dict[str, float]:
    """Return the Dice of each class, the mean over the query cases that show it, and ``mean`` over classes."""
    truth = torch.from_numpy(parts.queries.labels)
    found: dict[str, float] = {}
    for value in (int(v) for v in torch.unique(truth) if v):
        scores = []
        for case in np.unique(parts.queries.cases):
            rows = torch.from_numpy(parts.queries.cases == case)
            real, seen = truth[rows] == value, predicted[rows] == value
            if real.any():
                scores.append(float(2 * (real & seen).sum() / (real.sum() + seen.sum())))
        found[str(value)] = float(np.mean(scores))
    found["mean"] = float(np.mean(list(found.values())))
    return found


def presence_errors(parts: Split, predicted: Tensor) -> dict[str, float]:
    """Return how often a class is found in slices that lack it (``false``) and missed in those that show it.

    Mean over classes; a class that no slice lacks, or none shows, has no say.
    """
    truth = torch.from_numpy(parts.queries.labels)
    errors: dict[str, list[float]] = {"false": [], "missed": []}
    for value in (int(v) for v in torch.unique(truth) if v):
        real, seen = (truth == value).flatten(1).any(1), (predicted == value).flatten(1).any(1)
        for name, where, wrong in (("false", ~real, seen), ("missed", real, ~seen)):
            if where.any():
                errors[name].append(float(wrong[where].float().mean()))
    return {name: float(np.mean(values)) for name, values in errors.items() if values}


def evaluate(
    embedder: Any,
    sam2: Any,
    slices: Slices,
    protocol: Protocol,
    seeds: tuple[int, ...],
    pool: Slices | None = None,
) -> dict[str, Any]:
    """Measure retrieval, segmentation and label fusion on one set, averaged over seeds.

    Args:
        embedder: DINOv2 model, or None where the strategy needs none.
        sam2: SAM 2 model, or None to leave segmentation out.
        slices: patients that never trained.
        protocol: how to measure.
        seeds: of the splits.
        pool: other patients for the supports, see :func:`split`.

    Returns:
        ``retrieval`` (mean Dice of neighbours' labels), ``dice`` and ``fusion`` (a class, and ``mean``),
        ``presence`` (:func:`presence_errors`), ``slices_per_second`` and the number of queries.
    """
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        parts = split(slices, protocol, seed, pool)
        nearest = neighbours(embedder, parts, protocol, seed)
        row: dict[str, Any] = {
            "retrieval": retrieval_agreement(parts, nearest),
            "fusion": case_dice(parts, fuse(parts, nearest)),
            "queries": len(parts.queries),
        }
        if sam2 is not None:
            predicted, row["slices_per_second"] = segment(sam2, parts, nearest, protocol)
            row["dice"] = case_dice(parts, predicted)
            row["presence"] = presence_errors(parts, predicted)
        rows.append(row)
    return {key: _mean([row[key] for row in rows]) for key in rows[0]}


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        keys = {key for value in values for key in value}
        return {key: round(float(np.mean([v[key] for v in values if key in v])), 4) for key in sorted(keys)}
    return round(float(np.mean(values)), 4)

"""What token reduction of memories (``background_stride``) costs in Dice and gains in time.

First part: patients that never trained (``docs/model-card.md``), the preset's models, support slices and queries as in
``python -m rfss_core.pretraining evaluate``. Dice of each case and class, and processor time a slice with memories in
the bank. Second part: time alone, random weights of the real sizes, where attention dominates.

    python benchmarks/memory_reduction.py                          # a few minutes; needs RFSS_DATA
    python benchmarks/memory_reduction.py --part validation        # to choose something by
    python benchmarks/memory_reduction.py --sets --image-size 1024 # the second part at the official size
    python benchmarks/memory_reduction.py --sets --image-size 1024 --device cuda --dtype bfloat16 --queries 32

Ends with one line of key figures; exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from segmentation import Stopwatch, draw

from rfss_core.embedding import load_embedder
from rfss_core.presets import PRESETS
from rfss_core.pretraining.evaluation import Protocol, Split, case_dice, held_out_slices, split
from rfss_core.retrieval import Neighbours, Retriever, SupportSet
from rfss_core.segmentation.conversion import build_network
from rfss_core.segmentation.engine import MemorySegmenter
from rfss_core.segmentation.loading import load_memory_segmenter
from rfss_core.segmentation.memory import MemoryBank
from rfss_core.segmentation.official import build_predictor
from rfss_core.segmentation.transformers_adapter import TransformersAdapter
from rfss_core.settings import EmbeddingSettings, RetrievalSettings, SegmentationSettings

STRENGTHS: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1))
"""Blocks (``background_stride``) and borders (``background_border``) that are measured; the first is whole."""
KEY = (4, 2)
"""The strength that the targets are about."""
TARGET_LOSS = 0.01
"""Mean Dice over sets that it may cost at k = 8."""
TARGET_GAIN = 2.0
"""How many times faster it makes attention at k = 8 with 3 classes, random weights."""


@dataclass(frozen=True)
class Cost:
    """Processor time a slice (a CUDA device: wall time), in milliseconds, and tokens a memory."""

    attention: float
    total: float
    tokens: float


def watched(engine: MemorySegmenter, device: torch.device) -> Stopwatch:
    """Return a stopwatch over an engine's attention and over all that it does for a batch of queries."""
    watch = Stopwatch(device)
    for owner, method, label in (
        (engine.attention, "start", "attention"),
        (engine.attention, "condition", "attention"),
        (engine.device_cache, "collect", "attention"),
        (engine, "_decode", "total"),
        (engine, "_finish", "total"),
    ):
        watch.watch(owner, method, label)
    return watch


def strengthen(engine: MemorySegmenter, strength: tuple[int, int]) -> MemorySegmenter:
    """Return an engine of another strength on the same network and bank."""
    settings = engine.settings.model_copy(update={"background_stride": strength[0], "background_border": strength[1]})
    return MemorySegmenter(engine.adapter, engine.bank, settings, mode=engine.mode, trained=engine.trained)


def measure(
    engine: MemorySegmenter, queries: Sequence[Any], found: Sequence[Neighbours], support: SupportSet
) -> tuple[list[npt.NDArray[np.uint8]], Cost]:
    """Segment with all memories known; return labels and what a slice cost."""
    engine.segment(queries[:1], found[:1], support, keep_logits=False)
    wanted = sorted({int(index) for one in found for index in one.indices})
    memories = engine.encoder.memories(support, wanted, sorted(support.classes)).by_key
    tokens = float(engine.adapter.traits.grid**2)
    if (reducer := engine.device_cache.reducer) is not None:
        tokens = float(np.mean([len(reducer.reduce(memory)) for memory in memories.values()]))
    watch = watched(engine, engine.adapter.device)
    labels = [one.labels for one in engine.segment(queries, found, support, keep_logits=False)]
    milliseconds = {label: 1000 * seconds / len(queries) for label, seconds in watch.seconds.items()}
    return labels, Cost(milliseconds["attention"], milliseconds["total"], tokens)


def as_request(parts: Split, k: int) -> tuple[SupportSet, list[npt.NDArray[np.float32]], list[Neighbours]]:
    """Return support set, queries, and the k nearest support slices of each query by the preset's embedding."""
    embedder = load_embedder(EmbeddingSettings(), PRESETS["tiny"], device="cpu")
    shown = [image.astype(np.float32) / 255 for image in parts.support.images]
    queries = [image.astype(np.float32) / 255 for image in parts.queries.images]
    patients = [str(patient) for patient in parts.support.patients]
    support = SupportSet.from_arrays(shown, list(parts.support.labels), patients=patients)
    support = support.with_embeddings(embedder.embed(shown))
    names = [str(place) for place in range(len(queries))]
    of = [str(patient) for patient in parts.queries.patients]
    return support, queries, Retriever(support, RetrievalSettings()).search(embedder.embed(queries), names, of, k)


def measure_dice(name: str, options: argparse.Namespace) -> dict[tuple[int, tuple[int, int]], tuple[float, Cost]]:
    """Return mean Dice and cost of each k and strength on one set."""
    engine = load_memory_segmenter(SegmentationSettings(device=options.device), PRESETS["tiny"], None)
    protocol = Protocol(query_patients=options.patients)
    parts = split(held_out_slices(options.data, name, options.part), protocol, options.seed)
    support, queries, found = as_request(parts, max(options.k))
    rows = {}
    for k in options.k:
        nearest = [Neighbours(one.indices[:k], one.distances[:k]) for one in found]
        for strength in STRENGTHS:
            labels, cost = measure(strengthen(engine, strength), queries, nearest, support)
            dice = case_dice(parts, torch.from_numpy(np.stack(labels)))["mean"]
            rows[k, strength] = (dice, cost)
            whole = rows[k, STRENGTHS[0]]
            print(
                f"{name:12s} {k:2d} | {describe(strength)} | {dice:.3f} {dice - whole[0]:+.3f} | "
                f"{_cost(cost, whole[1])}",
                flush=True,
            )
    return rows


def measure_time(options: argparse.Namespace) -> dict[tuple[int, tuple[int, int]], Cost]:
    """Return the cost of each k and strength with random weights and three classes."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    predictor = build_predictor(options.size, "2.1", options.image_size)
    network = build_network(predictor.state_dict(), options.image_size)
    adapter = TransformersAdapter(network, device, getattr(torch, options.dtype))
    settings = SegmentationSettings(device=options.device, dtype=options.dtype)
    engine = MemorySegmenter(adapter, MemoryBank("random", 2**32), settings, mode="direct", trained=False)
    rng = np.random.default_rng(0)
    pairs = [draw(rng, 3) for _ in range(max(options.k))]
    # A third of the memories is of a class that the slice does not show, as between the slices of a volume.
    masks = [np.where(mask == 1 + row % 3, 0, mask).astype(np.uint8) for row, (_, mask) in enumerate(pairs)]
    support = SupportSet.from_arrays([image for image, _ in pairs], masks)
    queries = [draw(rng, 3)[0] for _ in range(options.queries)]
    rows = {}
    for k in options.k:
        found = [Neighbours(rng.permutation(k).astype(np.int64), np.zeros(k, np.float32)) for _ in queries]
        for strength in STRENGTHS:
            _, cost = measure(strengthen(engine, strength), queries, found, support)
            rows[k, strength] = cost
            name = f"hiera-{options.size} {options.image_size}"
            print(
                f"{name:12s} {k:2d} | {describe(strength)} |              | {_cost(cost, rows[k, STRENGTHS[0]])}",
                flush=True,
            )
    return rows


def describe(strength: tuple[int, int]) -> str:
    """Return a strength in words of one width."""
    stride, border = strength
    if stride == 1:
        return "whole             "
    return f"stride {stride}, border {border}"


def _cost(cost: Cost, whole: Cost) -> str:
    return (
        f"{cost.tokens:7.0f} tokens | attention {cost.attention:8.1f} ms, x{whole.attention / cost.attention:4.1f} | "
        f"total {cost.total:8.1f} ms, x{whole.total / cost.total:4.1f}"
    )


def main() -> int:
    """Run the benchmark and return the exit code."""
    options = _options()
    print(f"{options.device}, {torch.get_num_threads()} threads, {options.part} patients, seed {options.seed}")
    print("set or model k | background         | Dice         | tokens a memory | a slice, and how many times faster")
    figures: list[str] = []
    missed: list[str] = []
    found = {name: measure_dice(name, options) for name in options.sets}
    if found and 8 in options.k:
        loss = float(np.mean([rows[8, STRENGTHS[0]][0] - rows[8, KEY][0] for rows in found.values()]))
        figures.append(f"{describe(KEY).strip()}, k=8: Dice {-loss:+.3f} (target: no less than {-TARGET_LOSS})")
        if loss > TARGET_LOSS:
            missed.append(figures[-1])
    if options.image_size and 8 in options.k:
        rows = measure_time(options)
        gain = rows[8, STRENGTHS[0]].attention / rows[8, KEY].attention
        figures.append(f"attention at {options.image_size} px x{gain:.1f} (target {TARGET_GAIN})")
        if gain < TARGET_GAIN:
            missed.append(figures[-1])
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    print("; ".join(figures))
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RFSS_DATA", "../shared/data")))
    parser.add_argument("--sets", nargs="*", default=["hippocampus", "prostate-mr"], help="none: time alone")
    parser.add_argument("--part", default="test", choices=["test", "validation"])
    parser.add_argument("--patients", type=int, default=3, help="query patients of each set")
    parser.add_argument("--seed", type=int, default=0, help="of the split into support and queries")
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--size", default="t", choices=["t", "l"], help="of the random network")
    parser.add_argument("--image-size", type=int, default=512, help="its input; 0: no second part")
    parser.add_argument("--queries", type=int, default=1, help="of the second part")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

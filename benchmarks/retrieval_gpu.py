"""The index on GPUs against the same index on the CPU: training, adding and searching give the same, and how fast.

For exact search and for each kind of inverted lists that FAISS has on GPUs: an index is trained on the GPU and again on
the CPU, shards are filled on both from the same centroids (their files must be equal, byte for byte), and both are
searched (the same rows and distances, because candidates are measured again in float64). Needs
faiss-gpu and a GPU; ``--without-gpu`` runs the same steps on the CPU twice, which checks this script alone.

    python benchmarks/retrieval_gpu.py
    python benchmarks/retrieval_gpu.py --rows 1000000 --kinds ivf-sq8

Ends with one line of key figures; exits 1 where the two differ, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.building import draw_sample, finish, shard_ranges
from rfss_core.retrieval.generations import Generations
from rfss_core.retrieval.gpus import gpu_count
from rfss_core.retrieval.index import FlatIndex, VectorIndex
from rfss_core.retrieval.index_plan import plan_index
from rfss_core.retrieval.inverted_lists import build_shard, train
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import ArraySource
from rfss_core.retrieval.tuning import hold_out
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.settings.index import IndexSettings
from rfss_core.store.files import Files

DIM = 384
K = 16
BATCH = 1024
RUN = 32
LEAST_SAME = {"ivf-pq": 0.99}
"""Share of equal neighbours, else 0.9999: a query whose last list, or last candidate, is tied may look elsewhere on a
GPU. A product quantiser's distances are float16 there."""
KINDS = ("flat", "ivf-flat", "ivf-sq8", "ivf-pq")
Result = TypeVar("Result")


def draw(rows: int, seed: int) -> npt.NDArray[np.float32]:
    """Return clustered unit vectors float32 [rows, D]: runs of 32 rows around one of 500 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((500, 24)) @ np.random.default_rng(1).standard_normal((24, DIM))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    chosen = np.repeat(rng.integers(0, len(centres), -(-rows // RUN)), RUN)[:rows]
    spread = 0.015 * rng.standard_normal((rows, DIM), dtype=np.float32)
    return unit_vectors((centres[chosen] + spread).astype(np.float16))[0]


def timed(step: Callable[[], Result]) -> tuple[Result, float]:
    """Return what a step returns and its wall seconds."""
    started = time.perf_counter()
    result = step()
    return result, time.perf_counter() - started


def speed(index: VectorIndex, queries: npt.NDArray[np.float32]) -> float:
    """Return queries a second in batches, the first batch left out."""
    index.search(queries[:BATCH], K)
    _, seconds = timed(lambda: [index.search(queries[at : at + BATCH], K) for at in range(0, len(queries), BATCH)])
    return len(queries) / seconds


class Comparison:
    """Runs a kind on both and keeps the differences."""

    def __init__(self, vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], gpu: bool) -> None:
        self.vectors, self.queries, self.gpu = vectors, queries, gpu
        self.wrong: list[str] = []
        self.figures: list[str] = []

    def flat(self) -> None:
        """Compare exact search."""
        cpu, gpu = FlatIndex(self.vectors), FlatIndex(self.vectors, gpu=self.gpu)
        self._searched("flat", cpu, gpu)

    def lists(self, kind: str, folder: Path) -> None:
        """Train, fill, tune and search one kind of inverted lists."""
        source = ArraySource(self.vectors)
        settings = {side: self._settings(kind, side) for side in ("cpu", "gpu")}
        plan = plan_index(source.size, settings["cpu"])
        held = hold_out(np.arange(source.size) // RUN, 512, 0)
        sample = draw_sample(source, plan, held, 0)
        stores = {side: Generations(Files(folder / kind / side), "index") for side in settings}
        trained, seconds = {}, {}
        for side in settings:
            trained[side], seconds[side] = timed(
                lambda side=side: train(*sample, plan, settings[side], stores[side])  # type: ignore[misc]
            )
        spread = {side: trained[side].far for side in trained}
        print(
            f"{kind}: train {plan.nlist} lists: cpu {seconds['cpu']:.2f} s, gpu {seconds['gpu']:.2f} s; 99th "
            f"percentile of the distance to a list: cpu {spread['cpu']:.5f}, gpu {spread['gpu']:.5f}"
        )
        if abs(spread["gpu"] - spread["cpu"]) > 0.05 * spread["cpu"]:
            self.wrong.append(f"{kind}: lists trained on the GPU fit worse than the CPU's")
        shards: dict[str, list[Any]] = {}
        ranges = shard_ranges(source.size, -(-source.size // 4))
        # Both sides fill shards of the lists that the GPU trained.
        for side in settings:
            shards[side], seconds[side] = timed(
                lambda side=side: [  # type: ignore[misc]
                    build_shard(source.read(a, b), a, trained["gpu"], stores["gpu"], settings[side]) for a, b in ranges
                ]
            )
        print(f"{kind}: fill {len(ranges)} shards: cpu {seconds['cpu']:.2f} s, gpu {seconds['gpu']:.2f} s")
        if [part.lists.sha256 for part in shards["cpu"]] != [part.lists.sha256 for part in shards["gpu"]]:
            self.wrong.append(f"{kind}: shards filled on the GPU are other files than the CPU's")
        generation = finish(trained["gpu"], shards["gpu"], held, settings["gpu"], stores["gpu"], K)
        level = generation.tuning.levels[0]
        print(f"{kind}: nprobe {level.nprobe}, factor {generation.tuning.factor}, recall {level.recall:.4f}")
        opened = {side: ShardedIndex(stores["gpu"], generation, settings[side]) for side in settings}
        self._searched(kind, opened["cpu"], opened["gpu"])

    def _settings(self, kind: str, side: str) -> IndexSettings:
        values = {"kind": kind, "gpu": self.gpu and side == "gpu", "tune_queries": 512, "check": "quick"}
        return IndexSettings.model_validate(values)

    def _searched(self, kind: str, cpu: VectorIndex, gpu: VectorIndex) -> None:
        part = self.queries[:BATCH]
        allowed = np.arange(len(self.vectors)) % 3 == 0
        for name, mask in (("", None), (" under a filter", allowed)):
            rows, distances = cpu.search(part, K, mask)
            again, as_well = gpu.search(part, K, mask)
            same = float(np.mean(rows == again))
            largest = float(np.abs(distances - as_well).max())
            print(f"{kind}: search{name}: {100 * same:.3f} % of the rows equal, distances to {largest:.1e}")
            if same < LEAST_SAME.get(kind, 0.9999):
                self.wrong.append(f"{kind}: {100 * (1 - same):.3f} % of the neighbours{name} differ")
        rates = speed(cpu, self.queries), speed(gpu, self.queries)
        print(f"{kind}: search: cpu {rates[0]:.0f} queries/s, gpu {rates[1]:.0f} queries/s", flush=True)
        self.figures.append(f"{kind} {rates[0]:.0f} to {rates[1]:.0f}")


def main() -> int:
    """Parse arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=8 * BATCH)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--without-gpu", action="store_true", help="both sides on the CPU: checks this script alone")
    options = parser.parse_args()
    print(f"faiss {faiss.__version__}, {gpu_count()} GPUs, {options.rows:,} x {DIM}")
    if gpu_count() == 0 and not options.without_gpu:
        print("no GPU that FAISS can use: install faiss-gpu in place of faiss-cpu, or pass --without-gpu")
        return 2
    comparison = Comparison(draw(options.rows, 2), draw(options.queries, 3), not options.without_gpu)
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            comparison.flat() if kind == "flat" else comparison.lists(kind, Path(folder))
    for problem in comparison.wrong:
        print(f"different: {problem}")
    print(f"retrieval on {gpu_count()} GPUs, queries/s from CPU to GPU: {'; '.join(comparison.figures)}")
    return 1 if comparison.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

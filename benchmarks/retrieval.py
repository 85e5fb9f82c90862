"""Recall, speed, memory and cost of the sharded index, beside one plain FAISS index and exact search.

One million clustered 384-d vectors in 20 shards. Queries are new draws from the same distribution: none of them chose
the number of lists. ``plain`` is one FAISS index in memory with the same centroids and the same nprobe, searched as
FAISS's documentation does: no second measuring of candidates, no order of ties. Each kind runs in a process of its
own, so that its peak memory is its own.

    python benchmarks/retrieval.py                    # some minutes on two cores; 3 GB of disk
    python benchmarks/retrieval.py --curve            # 10,000 to 1,000,000 vectors, kinds as `auto` chooses them
    python benchmarks/retrieval.py --rows 100000 --shards 4

Ends with one line of key figures; exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from rfss_core.retrieval.building import draw_sample, finish, shard_ranges
from rfss_core.retrieval.generations import Generation, Generations
from rfss_core.retrieval.index_plan import plan_index
from rfss_core.retrieval.inverted_lists import build_shard, read_trained, train
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import ArraySource, StoredVectors, blocks, checked_units, nearest_among
from rfss_core.retrieval.tuning import hold_out
from rfss_core.settings import IndexSettings
from rfss_core.store import Files

K = 16
BATCH = 1024
DIM = 384
RUN = 32
TARGET_RECALL = {"ivf-sq8": 0.99, "ivf-flat": 0.995}
TARGET_SPEED = 5_000
"""Queries a second."""
TARGET_MEMORY = 4.0
"""GiB, of the whole process, mapped pages included."""
CURVE = (10_000, 30_000, 100_000, 300_000, 1_000_000)
GIB = 2**30
VECTORS, TRUTH = "vectors.npy", "truth.npy"


class Clusters:
    """A mixture that looks like embeddings of volumes: runs of 32 rows from one of many low-dimensional clusters.

    Centres lie in a 24-dimensional subspace, so clusters overlap; each spreads over 16 directions of its own; all rows
    carry a little noise in every component.
    """

    def __init__(self, seed: int, clusters: int = 500) -> None:
        rng = np.random.default_rng(seed)
        self._centres = unit(rng.standard_normal((clusters, 24)) @ rng.standard_normal((24, DIM)))
        self._directions = rng.standard_normal((clusters, 16, DIM)).astype(np.float32) / np.sqrt(DIM)

    def draw(self, rows: int, seed: int, run: int = RUN) -> npt.NDArray[np.float16]:
        """Return float16 [rows, D]."""
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, len(self._centres), -(-rows // run))
        spread = 0.15 * rng.standard_normal((len(chosen), run, 16), dtype=np.float32)
        found = self._centres[chosen, None] + spread @ self._directions[chosen]
        found = found.reshape(-1, DIM)[:rows]
        found += 0.005 * rng.standard_normal(found.shape, dtype=np.float32)
        return unit(found).astype(np.float16)


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return float32 rows of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    recall: float
    speed: float
    cpu_speed: float
    first_speed: float
    seconds: dict[str, float]
    bytes_a_vector: float = 0.0
    note: str = ""
    peak: float = 0.0
    """GiB: the largest resident memory of the process so far."""

    def __str__(self) -> str:
        steps = "  ".join(f"{step} {seconds:.1f}" for step, seconds in self.seconds.items())
        return (
            f"{self.name:<22}{self.recall:>10.4f}{self.speed:>12.0f}{self.cpu_speed:>10.0f}{self.first_speed:>10.0f}{self.bytes_a_vector:>10.0f}"
            f"{self.peak:>8.2f}   {steps}   {self.note}"
        )


HEADER = (
    f"{'index':<22}{'recall@16':>10}{'queries/s':>12}{'a CPU s':>10}{'at first':>10}"
    f"{'B/vector':>10}{'GiB':>8}   seconds"
)


def peak() -> float:
    """Return the largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def store_vectors(path: Path, rows: int, clusters: Clusters) -> None:
    """Write the vectors in pieces."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, DIM))
    for first in range(0, rows, 50_000):
        last = min(first + 50_000, rows)
        array[first:last] = clusters.draw(last - first, seed=1 + first)
    array.flush()


def recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """Return the share of the true neighbours that was found."""
    return float((found[: len(truth), :, None] == truth[:, None, :]).any(axis=2).mean())


def speed(
    search: Callable[[npt.NDArray[np.float32]], object],
    queries: npt.NDArray[np.float32],
    others: npt.NDArray[np.float32],
) -> tuple[float, float, float]:
    """Return queries per second in batches: of wall time, of processor time, and of wall time when first asked.

    A process maps a page of the index when it first reads it, which costs more than the reading. ``others`` are asked
    first: as many queries, of another draw. Processor time says what
    a busy machine would do when quiet.
    """
    search(others[:BATCH])
    rates: list[float] = []
    for asked in (others[BATCH:], queries):
        wall, cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(asked), BATCH):
            search(asked[first : first + BATCH])
        rates += [len(asked) / (time.perf_counter() - wall), len(asked) / (time.process_time() - cpu)]
    return rates[2], rates[3], rates[0]


class Bench:
    """The vectors, the queries and their true neighbours."""

    def __init__(self, folder: Path, rows: int, shards: int, queries: int, threads: int) -> None:
        self.folder, self.threads, self.shard_rows = folder, threads, -(-rows // shards)
        clusters = Clusters(seed=0)
        path = folder / VECTORS
        if not path.exists():
            store_vectors(path, rows, clusters)
        self.source = ArraySource(np.load(path, mmap_mode="r"))
        self.truth = np.load(folder / TRUTH) if (folder / TRUTH).exists() else None
        self.queries, self.others = (
            checked_units(clusters.draw(queries, seed=2**31 + number, run=1), range(queries)) for number in range(2)
        )
        self.vectors = StoredVectors([path], [rows], DIM)
        faiss.omp_set_num_threads(threads)

    def exact(self) -> Row:
        """Search all rows for the first batch: the truth."""
        started, cpu = time.perf_counter(), time.process_time()
        self.truth = nearest_among(self.vectors, self.queries[:BATCH], K, threads=self.threads)[0]
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        np.save(self.folder / TRUTH, self.truth)
        return Row("exact, float16 rows", 1.0, BATCH / wall, BATCH / cpu, BATCH / wall, {}, 2.0 * DIM, peak=peak())

    def sharded(self, settings: IndexSettings) -> tuple[Row, ShardedIndex]:
        """Train, build, tune, publish, open and search."""
        size, seconds = self.source.size, {}
        generations = Generations(Files(self.folder / f"{settings.kind}-{size}"), "index")
        plan = plan_index(size, settings)
        clock = time.perf_counter()
        # A run is a volume: recall is tuned on volumes that are held out.
        held = hold_out(np.arange(size) // RUN, settings.tune_queries, settings.seed)
        trained = train(*draw_sample(self.source, plan, held, settings.seed), plan, settings, generations)
        seconds["train"] = time.perf_counter() - clock
        clock = time.perf_counter()
        ranges = shard_ranges(size, settings.shard_rows)
        shards = [build_shard(self.source.read(a, b), a, trained, generations, settings) for a, b in ranges]
        seconds["shards"] = time.perf_counter() - clock
        clock = time.perf_counter()
        generation = finish(trained, shards, held, settings, generations, K, self.threads)
        seconds["tune"] = time.perf_counter() - clock
        clock = time.perf_counter()
        index = ShardedIndex(generations, generation, settings, self.threads)
        seconds["open"] = time.perf_counter() - clock
        found = index.search(self.queries[:BATCH], K)[0]
        rate = speed(lambda part: index.search(part, K), self.queries, self.others)
        size_of = sum(shard.lists.size for shard in shards) + trained.file.size
        joined = generation.joined.lists.size / size if generation.joined is not None else 0
        filtered = min(level.recall for level in generation.tuning.levels)
        note = (
            f"{len(shards)} shards, nlist {trained.nlist}, nprobe {generation.tuning.levels[0].nprobe}, factor "
            f"{generation.tuning.factor}, least recall under filters {filtered:.4f}; + {2 * DIM} B/vector stored, "
            f"{joined:.0f} joined"
        )
        return Row(trained.kind, recall(found, self.truth), *rate, seconds, size_of / size, note, peak()), index

    def plain(self, generation: Generation, settings: IndexSettings) -> Row:
        """Add everything to one FAISS index in memory with the same centroids."""
        generations = Generations(Files(self.folder / f"{settings.kind}-{self.source.size}"), "index")
        single = read_trained(generation.trained, generations, full=False)
        clock = time.perf_counter()
        for first, block in blocks(self.source):
            rows = np.arange(first, first + len(block))
            single.add_with_ids(checked_units(block, rows), rows)
        seconds = {"add": time.perf_counter() - clock}
        single.nprobe = generation.tuning.levels[0].nprobe
        found = single.search(self.queries[:BATCH], K)[1]
        rate = speed(lambda part: single.search(part, K), self.queries, self.others)
        size = single.code_size + 8 + single.nlist * DIM * 4 / self.source.size
        return Row(f"plain {generation.trained.kind}", recall(found, self.truth), *rate, seconds, size, peak=peak())


def settings_for(kind: str, rows: int, shards: int) -> IndexSettings:
    """Return the defaults, with the kind and the number of shards."""
    target = TARGET_RECALL.get(kind, 0.99)
    values: dict[str, Any] = {"kind": kind, "target_recall": target, "shard_rows": -(-rows // shards)}
    return IndexSettings(**values)


def measure_kind(kind: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure one kind, and the plain index beside SQ8; runs in a process of its own."""
    bench = Bench(folder, options.rows, options.shards, options.queries, options.threads)
    settings = settings_for(kind, options.rows, options.shards)
    row, index = bench.sharded(settings)
    return [row, bench.plain(index.generation, settings)] if kind == "ivf-sq8" else [row]


def headline(options: argparse.Namespace, folder: Path) -> int:
    """Measure both kinds at one size; return the exit code."""
    print(f"{options.rows:,} vectors of {DIM} in {options.shards} shards, {options.threads} threads\n{HEADER}")
    print(Bench(folder, options.rows, options.shards, options.queries, options.threads).exact(), flush=True)
    rows: dict[str, Row] = {}
    for kind in TARGET_RECALL:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(measure_kind, kind, options, folder).result()
        rows[kind] = found[0]
        print("\n".join(map(str, found)), flush=True)
    missed = [
        f"{kind} recall {row.recall:.4f} < {TARGET_RECALL[kind]}"
        for kind, row in rows.items()
        if row.recall < TARGET_RECALL[kind]
    ]
    missed += [f"{kind} {row.speed:.0f} queries/s" for kind, row in rows.items() if row.speed < TARGET_SPEED]
    missed += [f"{kind} peak {row.peak:.2f} GiB" for kind, row in rows.items() if row.peak >= TARGET_MEMORY]
    print("missed: " + ", ".join(missed) if missed else "all targets met")
    parts = [
        f"{kind} recall@{K} {row.recall:.4f} at {row.speed:.0f} queries/s, {row.bytes_a_vector:.0f} B/vector, "
        f"built in {sum(row.seconds.values()):.0f} s, peak {row.peak:.2f} GiB"
        for kind, row in rows.items()
    ]
    print(f"retrieval, {options.rows:,} x {DIM}: {'; '.join(parts)}")
    return 1 if missed else 0


def curve(options: argparse.Namespace, folder: Path) -> int:
    """Measure the kinds that ``auto`` chooses from 10,000 to the largest size."""
    print(f"Cost by size, {options.threads} threads\n{HEADER}")
    sizes = [size for size in CURVE if size <= options.rows]
    last = ""
    for size in sizes:
        place = folder / str(size)
        place.mkdir()
        bench = Bench(place, size, max(1, size // 50_000), 4 * BATCH, options.threads)
        exact = bench.exact()
        row, _ = bench.sharded(settings_for("auto", size, max(1, size // 50_000)))
        print(f"{size:>9,}  exact {exact.speed:.0f}/s  {row}", flush=True)
        last = f"{size:,}: {row.name} recall {row.recall:.4f}, {row.speed:.0f} queries/s"
    print(f"retrieval curve to {last}; peak {peak():.2f} GiB")
    return 0


def main() -> int:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--queries", type=int, default=8 * BATCH)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--curve", action="store_true", help="cost by size instead of the two kinds at one size")
    parser.add_argument("--folder", type=Path, help="scratch folder; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return curve(options, Path(folder)) if options.curve else headline(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())

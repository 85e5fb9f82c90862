"""From vectors to a published generation, and from one generation to the next."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import RecallWarning, SettingsError, SupportError
from rfss_core.retrieval.generations import Generation, Generations, Joined, Shard, Trained, Tuning
from rfss_core.retrieval.index_plan import IndexPlan, plan_index
from rfss_core.retrieval.inverted_lists import build_shard, read_shard, train
from rfss_core.retrieval.joined_lists import join
from rfss_core.retrieval.sharded import ShardedIndex
from rfss_core.retrieval.stored_vectors import VectorSource, blocks
from rfss_core.retrieval.tuning import hold_out, tune
from rfss_core.settings.index import IndexSettings


@dataclass(frozen=True)
class Drift:
    """How new vectors lie to the lists that others were trained on."""

    share: float
    """Share of them that is farther from every list than 99 in 100 of the trained distribution: 0.01 is no drift."""
    retrain: bool
    """Whether the share is above ``drift_share``: build a generation anew."""


def build(
    source: VectorSource,
    settings: IndexSettings,
    generations: Generations,
    k: int,
    groups: npt.NDArray[np.int64] | None = None,
    threads: int | None = None,
) -> Generation:
    """Train, fill all shards in this process, tune, and publish.

    Stage index does the same with its shards in parallel. To train anew on what an index holds, pass its
    :attr:`ShardedIndex.vectors` as the source.

    Args:
        source: the vectors, in the order of their rows.
        settings: kind, shards, target.
        generations: where to publish.
        k: neighbours that recall is tuned at.
        groups: int64 [N], the patient of each row as a number: recall is measured on patients that are held out.
            None: each row is its own, and recall is optimistic where rows of one patient are alike.
        threads: FAISS's threads; None leaves them as they are.

    Returns:
        The published generation.

    Raises:
        SettingsError: too few vectors for an approximate index; :class:`FlatIndex` is exact and needs no store.
        SupportError: a vector is zero or not finite.

    Warns:
        RecallWarning: the target was not reached.
    """
    plan = plan_index(source.size, settings)
    if plan.kind == "flat":
        raise SettingsError(f"{source.size} vectors are searched exactly: use FlatIndex, or set index.kind")
    held = hold_out(_groups(source, groups), settings.tune_queries, settings.seed)
    trained = train(*draw_sample(source, plan, held, settings.seed), plan, settings, generations)
    shards = [
        build_shard(source.read(first, last), first, trained, generations, settings)
        for first, last in shard_ranges(source.size, settings.shard_rows)
    ]
    generation = finish(trained, shards, held, settings, generations, k, threads)
    _warn(generation)
    return generation


def extend(
    source: VectorSource,
    settings: IndexSettings,
    generations: Generations,
    groups: npt.NDArray[np.int64] | None = None,
    threads: int | None = None,
) -> tuple[Generation, Drift]:
    """Publish a generation with more rows: the current one's shards as they are, and new ones, without training.

    Args:
        source: the new vectors; they get the next rows.
        settings: shards, ``drift_share``, and the target that recall is tuned to again.
        generations: where the current generation is.
        groups: as in :func:`build`, of the new vectors. Their share of the recall's queries is their share of the rows.
        threads: FAISS's threads.

    Returns:
        The published generation, and whether the new vectors have drifted from what the lists were trained on.

    Raises:
        SupportError: no new vectors, another dimension, or a vector is zero or not finite.
        IndexNotFoundError: there is nothing to extend.

    Warns:
        RecallWarning: the target was not reached.
    """
    old = generations.read()
    if source.size == 0:
        raise SupportError("there are no new vectors to add; give at least one")
    new = [
        build_shard(source.read(first, last), old.rows + first, old.trained, generations, settings)
        for first, last in shard_ranges(source.size, settings.shard_rows)
    ]
    known = np.load(generations.path(old.held), allow_pickle=False)
    queries = max(1, round(int(known[:, 1].sum()) * source.size / old.rows))
    fresh = hold_out(_groups(source, groups), queries, settings.seed)
    fresh[:, 0] += old.rows
    held, shards = np.concatenate([known, fresh]), [*old.shards, *new]
    generation = finish(old.trained, shards, held, settings, generations, old.tuning.k, threads, parent=old.id)
    _warn(generation)
    share = sum(shard.far_share * shard.rows for shard in new) / source.size
    return generation, Drift(share, share > settings.drift_share)


def finish(
    trained: Trained,
    shards: list[Shard],
    held: npt.NDArray[np.int64],
    settings: IndexSettings,
    generations: Generations,
    k: int,
    threads: int | None = None,
    parent: str | None = None,
) -> Generation:
    """Join and tune a generation whose shards are built, and publish it: the step after which readers see it.

    Args:
        trained: what :func:`train` returned.
        shards: by rising row.
        held: what :func:`hold_out` returned.
        settings: target, ``merge``.
        generations: where to publish.
        k: neighbours that recall is tuned at.
        threads: FAISS's threads.
        parent: generation that this one extends.

    Returns:
        The published generation; its ``tuning.met`` says whether the target was reached.
    """
    import faiss

    with generations.files.scratch() as path:
        with path.open("wb") as stream:
            np.save(stream, held, allow_pickle=False)
        stored = generations.put(path, ".npy")
    untuned = Tuning(k=k, target=settings.target_recall, queries=0, factor=1, levels=())
    generation = Generation(
        faiss=str(faiss.__version__),
        trained=trained,
        shards=tuple(shards),
        held=stored,
        tuning=untuned,
        parent=parent,
        joined=_joined(trained, shards, generations) if settings.merge and len(shards) > 1 else None,
    )
    tuning = tune(ShardedIndex(generations, generation, settings, threads), k, settings, threads)
    generation = generation.model_copy(update={"tuning": tuning})
    generations.publish(generation)
    return generation


def shard_ranges(rows: int, shard_rows: int) -> list[tuple[int, int]]:
    """Return the (first, last) rows of each shard, last exclusive."""
    return [(first, min(first + shard_rows, rows)) for first in range(0, rows, shard_rows)]


def draw_sample(
    source: VectorSource, plan: IndexPlan, held: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the training sample [n, D], drawn from the rows that are not held out, in random order, and the queries.

    The source is read once, in its order.
    """
    rng = np.random.default_rng(seed)
    free = np.ones(source.size, dtype=np.bool_)
    free[held[:, 0]] = False
    candidates = np.flatnonzero(free)
    rows = np.sort(rng.choice(candidates, size=min(plan.train_rows, len(candidates)), replace=False))
    asked = held[held[:, 1] == 1, 0]
    sample: list[npt.NDArray[Any]] = []
    queries: list[npt.NDArray[Any]] = []
    for first, block in blocks(source):
        for wanted, parts in ((rows, sample), (asked, queries)):
            low, high = np.searchsorted(wanted, [first, first + len(block)])
            parts.append(block[wanted[low:high] - first])
    drawn = np.concatenate(sample)
    return drawn[rng.permutation(len(drawn))], np.concatenate(queries)


def _joined(trained: Trained, shards: list[Shard], generations: Generations) -> Joined:
    return join([read_shard(shard, trained, generations.path(shard.lists)) for shard in shards], generations)


def _groups(source: VectorSource, groups: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    if groups is None:
        return np.arange(source.size)
    if groups.shape != (source.size,):
        raise SupportError(f"groups have shape {groups.shape}, but there are {source.size} vectors; give one for each")
    return groups


def _warn(generation: Generation) -> None:
    if not generation.tuning.met:
        worst = min(generation.tuning.levels, key=lambda level: level.recall)
        warnings.warn(
            RecallWarning(
                f"generation '{generation.id}' finds {worst.recall:.4f} of the true neighbours where a filter leaves "
                f"{worst.share:g} of the rows; the target is {generation.tuning.target:g}. Choose a finer index.kind, "
                "leave index.nprobe out, or train anew"
            ),
            stacklevel=3,
        )

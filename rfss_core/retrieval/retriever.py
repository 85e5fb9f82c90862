"""From query embeddings to the support slices that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rfss_core.errors import PixelError, SettingsError, SupportError, TooFewSupportsError
from rfss_core.retrieval.filter import Metadata, SupportFilter
from rfss_core.retrieval.index import FlatIndex, VectorIndex
from rfss_core.retrieval.index_plan import EXACT_BELOW
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.strategies import QueryGroup, Strategy, load_strategy
from rfss_core.retrieval.support import SupportSet
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.settings import RetrievalSettings


class Retriever:
    """Chooses support slices for queries, never one of the query's own patient.

    Patient and filter are taken out before the top-k is taken: they never cost a neighbour. How k slices are chosen
    among the rest says ``settings.strategy``; see :mod:`rfss_core.retrieval.strategies` and docs/retrieval.md.

    With ``settings.support_slices`` only the slices that :meth:`SupportSet.draw` chooses are retrieved; indices
    still count the rows of the whole set.

    Args:
        support: labelled slices with embeddings (not needed beside an index), and with patch tokens for strategy
            ``region``.
        settings: strategy, filter and size of the support set.
        seed: seed of the random draws.
        threads: FAISS's threads in this process; None leaves them as they are.
        index: of the support set's embeddings, row for row. Default: exact search.
        gpu: search exactly on GPUs where faiss-gpu sees any and the support set is large.

    Raises:
        SupportError: the support set lacks embeddings (without an index) or patch tokens, or the index is not its own.
        SettingsError: a filter on a column or class that the support set does not have.
    """

    def __init__(
        self,
        support: SupportSet,
        settings: RetrievalSettings,
        seed: int = 0,
        threads: int | None = None,
        index: VectorIndex | None = None,
        gpu: bool = False,
    ) -> None:
        if index is None:
            if support.embeddings is None:
                raise SupportError("the support set has no embeddings; add them with with_embeddings(embedder.embed())")
            index = FlatIndex(support.embeddings, threads, gpu and len(support) >= EXACT_BELOW)
        self._index = index
        if self._index.size != len(support):
            raise SupportError(
                f"the index holds {self._index.size} vectors, the support set {len(support)} slices; "
                "open the index that belongs to this support set"
            )
        drawn = np.ones(len(support), dtype=np.bool_)
        if settings.support_slices is not None and settings.support_slices < len(support):
            drawn[:] = False
            drawn[support.draw(settings.support_slices, seed)] = True
        self._filter = SupportFilter(settings.filter, support, drawn)
        self._strategy: Strategy = load_strategy(settings, support, self._index, seed)
        self._drawn = int(drawn.sum())

    def search(
        self,
        embeddings: npt.ArrayLike,
        query_ids: Sequence[str],
        patients: Sequence[str | None],
        k: int,
        *,
        metadata: Sequence[Metadata] | None = None,
        patches: Sequence[npt.NDArray[Any]] | None = None,
        fewer: bool = False,
    ) -> list[Neighbours]:
        """Choose support slices for each query.

        Args:
            embeddings: [n, D]; normalised here, so float16 from the store is fine.
            query_ids: name of each query, unique in the project.
            patients: patient of each query; None excludes nobody.
            k: support slices wanted for a query; strategy ``per-class``: for each of its classes.
            metadata: each query's values of the columns that ``filter.match`` compares.
            patches: L2-normalised patch tokens [h, w, D] of each query, for strategy ``region``.
            fewer: take all that are left where fewer than k are, instead of raising.

        Returns:
            One entry a query, in the queries' order.

        Raises:
            TooFewSupportsError: fewer than k slices are left for a query (with ``fewer``: none is).
            SupportError: another dimension than the support set's.
            PixelError: a query's embedding is not finite or is zero.
            SettingsError: k below 1, arguments of differing lengths, or a query without what the filter or the strategy
                compares.
        """
        queries = self._checked(embeddings, query_ids, patients, k)
        for what, given in (("metadata", metadata), ("patches", patches)):
            if given is not None and len(given) != len(queries):
                raise SettingsError(f"{len(queries)} queries but {len(given)} {what}; each query needs one")
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, patient in enumerate(patients):
            key = self._filter.key(patient, None if metadata is None else metadata[i])
            groups.setdefault(key, []).append(i)
        found: dict[int, Neighbours] = {}
        for key, members in groups.items():
            allowed = self._filter.allowed(key)
            left = int(np.count_nonzero(allowed))
            if left < (1 if fewer else k):
                raise self._too_few(query_ids[members[0]], key, left, k)
            group = QueryGroup(
                [query_ids[i] for i in members],
                queries[members],
                allowed,
                min(k, left),
                None if patches is None else [patches[i] for i in members],
            )
            found.update(zip(members, self._strategy.choose(group), strict=True))
        return [found[i] for i in range(len(queries))]

    def _checked(
        self, embeddings: npt.ArrayLike, query_ids: Sequence[str], patients: Sequence[str | None], k: int
    ) -> npt.NDArray[np.float32]:
        array = np.asarray(embeddings)
        if k < 1:
            raise SettingsError(f"k must be at least 1, got {k}")
        if array.ndim != 2 or not len(array) == len(query_ids) == len(patients):
            raise SettingsError(
                f"embeddings of shape {array.shape}, {len(query_ids)} query ids and {len(patients)} patients; "
                "each query needs one of each"
            )
        if array.shape[1] != self._index.dim:
            raise SupportError(
                f"the queries' embeddings have {array.shape[1]} components, the support set's {self._index.dim}; "
                "embed both with the same model"
            )
        queries, bad = unit_vectors(array)
        if bad.size:
            raise PixelError(
                f"the embedding of query '{query_ids[int(bad[0])]}' is not finite or is zero; check its pixels"
            )
        return queries

    def _too_few(self, name: str, key: tuple[Any, ...], left: int, k: int) -> TooFewSupportsError:
        where = self._filter.describe(key)
        remedies = [f"lower k to {left}"] if left else []
        remedies += ["widen the filter"] if self._filter.describe() or key[1:] else []
        return TooFewSupportsError(
            f"query '{name}' asks for k = {k} support slices, but only {left} of {self._drawn} are left"
            f"{f' where {where}' if where else ''}; {', '.join([*remedies, 'label slices of more patients'])}"
        )

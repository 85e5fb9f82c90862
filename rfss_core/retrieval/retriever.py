"""From query embeddings to the support slices that serve them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rfss_core.errors import PixelError, SettingsError, SupportError
from rfss_core.retrieval.index import FlatIndex, VectorIndex, Vectors, squared_distances
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.support import SupportSet
from rfss_core.retrieval.vectors import unit_vectors
from rfss_core.settings import RetrievalSettings


class Retriever:
    """Chooses support slices for queries, never one of the query's own patient.

    The patient is excluded before the top-k is taken. A query gets k neighbours, or all that are left where fewer
    than k are, and :class:`SupportError` where none is left.

    Strategies (``settings.strategy``):

    - ``dino``: the nearest embeddings by squared L2 distance, nearest first (Zhao et al., Retrieval-augmented few-shot
      medical image segmentation with foundation models, section III-B).
    - ``random``: drawn without replacement, for comparison; the draw depends on the seed, the query's id and the
      support set alone, not on what else is searched in the same call. Distances are the true ones, in order of draw.

    With ``settings.support_slices`` only the slices that :meth:`SupportSet.draw` chooses are retrieved; indices
    still count the rows of the whole set.

    Args:
        support: labelled slices with embeddings.
        settings: strategy and size of the support set.
        seed: seed of the random draws.
        threads: FAISS's threads in this process; None leaves them as they are.

    Raises:
        SupportError: the support set has no embeddings.
    """

    def __init__(
        self, support: SupportSet, settings: RetrievalSettings, seed: int = 0, threads: int | None = None
    ) -> None:
        if support.embeddings is None:
            raise SupportError("the support set has no embeddings; add them with with_embeddings(embedder.embed(...))")
        self._settings = settings
        self._seed = seed
        self._vectors: Vectors = support.embeddings
        self._index: VectorIndex = FlatIndex(self._vectors, threads)
        self._drawn = np.ones(len(support), dtype=np.bool_)
        if settings.support_slices is not None and settings.support_slices < len(support):
            self._drawn[:] = False
            self._drawn[support.draw(settings.support_slices, seed)] = True
        self._rows_of: dict[str, list[int]] = {}
        for row, patient in enumerate(support.patients):
            self._rows_of.setdefault(patient, []).append(row)

    def search(
        self,
        embeddings: npt.ArrayLike,
        query_ids: Sequence[str],
        patients: Sequence[str | None],
        k: int,
    ) -> list[Neighbours]:
        """Choose support slices for each query.

        Args:
            embeddings: [n, D]; normalised here, so float16 from the store is fine.
            query_ids: name of each query, unique in the project.
            patients: patient of each query; None excludes nobody.
            k: support slices wanted for a query.

        Returns:
            One entry a query, in the queries' order.

        Raises:
            SupportError: another dimension than the support set's, or no slice of another patient is left.
            PixelError: a query's embedding is not finite or is zero.
            SettingsError: k below 1, or arguments of differing lengths.
        """
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
        groups: dict[str | None, list[int]] = {}
        for i, patient in enumerate(patients):
            # Queries whose patient has no support slice share the unrestricted search.
            groups.setdefault(patient if patient in self._rows_of else None, []).append(i)
        found: dict[int, Neighbours] = {}
        for patient, members in groups.items():
            allowed = self._allowed(patient)
            if self._settings.strategy == "random":
                for i in members:
                    found[i] = self._draw(queries[i], query_ids[i], allowed, k)
            else:
                indices, distances = self._index.search(queries[members], k, allowed)
                for i, row, distance in zip(members, indices, distances, strict=True):
                    found[i] = Neighbours(row, distance)
        return [found[i] for i in range(len(array))]

    def _allowed(self, patient: str | None) -> npt.NDArray[np.bool_]:
        allowed = self._drawn.copy()
        if patient is not None:
            allowed[self._rows_of[patient]] = False
        if not allowed.any():
            raise SupportError(
                f"all {int(self._drawn.sum())} support slices belong to patient '{patient}', the query's own; "
                "label slices of at least one more patient"
            )
        return allowed

    def _draw(self, query: npt.NDArray[np.float32], name: str, allowed: npt.NDArray[np.bool_], k: int) -> Neighbours:
        rows = np.flatnonzero(allowed).astype(np.int64)
        entropy = int.from_bytes(hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:16], "little")
        drawn = np.random.default_rng(entropy).choice(rows, size=min(k, len(rows)), replace=False)
        return Neighbours(drawn, squared_distances(query, self._vectors[drawn]).astype(np.float32))

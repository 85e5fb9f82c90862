"""The pool: all slices of a project, from which those to label next are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rfss_core.errors import InputError
from rfss_core.retrieval.index import Vectors


@dataclass(frozen=True, eq=False)
class SlicePool:
    """Slices with and without a label.

    Attributes:
        vectors: L2-normalised float32 [N, D], as :func:`rfss_core.retrieval.vectors.unit_vectors` returns them.
        ids: one distinct name a slice.
        patients: the patient of each slice.
        labelled: bool [N], slices that have a label.

    Raises:
        InputError: no slice, or lengths that differ.
    """

    vectors: Vectors
    ids: Sequence[str]
    patients: Sequence[str]
    labelled: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        lengths = {len(self.vectors), len(self.ids), len(self.patients), len(self.labelled)}
        if self.vectors.ndim != 2 or self.vectors.size == 0 or len(lengths) != 1:
            raise InputError(
                f"vectors of shape {self.vectors.shape} with {len(self.ids)} ids, {len(self.patients)} patients and "
                f"{len(self.labelled)} marks; each slice needs one of each, and at least one slice has to be there"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def place(self) -> npt.NDArray[np.int64]:
        """Place of each slice in the order of ids, which decides between equals: int64 [N]."""
        return np.argsort(np.array(sorted(range(len(self)), key=self.ids.__getitem__), dtype=np.int64))

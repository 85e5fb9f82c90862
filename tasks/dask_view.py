"""A data set as Dask sees it (entry point ``dask_array`` of group ``rfss.dataset_view``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from rfss_core.datasets.pseudo_label_case import PseudoLabelCase
from rfss_core.datasets.pseudo_label_set import PseudoLabelSet
from rfss_core.errors import InputError
from rfss_core.quality.decision import Decision


def dask_array(
    dataset: PseudoLabelSet,
    what: Literal["image", "label", "uncertainty"],
    decisions: Sequence[Decision],
    pad: bool,
) -> da.Array:
    """Return the slices of a data set, one chunk a case; see :meth:`PseudoLabelSet.dask_array`."""
    if what not in ("image", "label", "uncertainty"):
        raise InputError(f"'{what}' is no array of a data set; use image, label or uncertainty")
    cases = dataset.cases(decisions)
    if what == "uncertainty":
        lacking = [case.name for case in cases if case.origin.uncertainty(case.entry) is None]
        if lacking:
            raise InputError(f"no uncertainty is stored for {len(lacking)} cases, the first is '{lacking[0]}'")
    colours = [_colours(case) if what == "image" else () for case in cases]
    if len(set(colours)) > 1:
        raise InputError(f"'{dataset}' holds grey and coloured images, which make no one array; take them by kind")
    planes = {case.shape[1:] for case in cases}
    if len(planes) > 1 and not pad:
        sizes = ", ".join(f"{height} x {width}" for height, width in sorted(planes)[:5])
        raise InputError(f"slices of '{dataset}' differ in size ({sizes}, ...); use pad=True, or torch_dataset")
    height, width = (max(plane[axis] for plane in planes) for axis in (0, 1))
    dtype = np.float32 if what == "image" else np.uint8
    blocks = [
        da.from_delayed(
            delayed(_read, pure=True)(case, what, (height, width)),
            (case.n_slices, height, width, *colour),
            dtype,
        )
        for case, colour in zip(cases, colours, strict=True)
    ]
    joined: da.Array = da.concatenate(blocks, axis=0)
    return joined


def _read(case: PseudoLabelCase, what: str, plane: tuple[int, int]) -> npt.NDArray[Any]:
    array = getattr(case, what)()
    margins = [(0, 0), *((0, size - has) for size, has in zip(plane, array.shape[1:3], strict=True))]
    return np.pad(array, [*margins, *[(0, 0)] * (array.ndim - 3)])


def _colours(case: PseudoLabelCase) -> tuple[int, ...]:
    return case.image(0, 1).shape[3:]

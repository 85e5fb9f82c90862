"""Class values of a format that wants them consecutive, and names that it can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rfss_core.errors import LabelError


@dataclass(frozen=True)
class LabelMap:
    """Source values to exported ones; 0 is background in both."""

    values: Mapping[int, int]
    """Source value (1 to 255) to exported value."""
    names: Mapping[int, str]
    """Exported value to class name, background excluded."""

    @classmethod
    def consecutive(cls, classes: Mapping[int, str], ignore: int | None) -> LabelMap:
        """Number the classes from 1 in the order of their values, ignored voxels last, as nnU-Net wants them.

        Args:
            classes: source value to name.
            ignore: the source value of ignored voxels, where there is one.
        """
        ordered = sorted(classes, key=lambda value: (value == ignore, value))
        values = {value: number for number, value in enumerate(ordered, start=1)}
        return cls(values, {number: classes[value] for value, number in values.items()})

    def apply(self, labels: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
        """Return the label map with exported values.

        Raises:
            LabelError: it holds a value that is no class of the data set.
        """
        unknown = sorted({int(value) for value in np.unique(labels)} - {0, *self.values})
        if unknown:
            raise LabelError(
                f"{name}: its label map holds {', '.join(map(str, unknown))}, no class of the data set "
                f"({', '.join(map(str, sorted(self.values)))}); mend it or leave the expert's cases out"
            )
        return self._table[labels]

    @cached_property
    def _table(self) -> npt.NDArray[np.uint8]:
        table = np.zeros(256, np.uint8)
        for source, exported in self.values.items():
            table[source] = exported
        return table


def slug(text: str, fallback: str, longest: int = 64) -> str:
    """Return letters, digits, ``_`` and ``-`` of a text, or ``fallback`` where none is left."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_-")[:longest] or fallback

"""Cases to export: image and label map of one case, read when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rfss_core.datasets.manifest import DatasetEntry
from rfss_core.imaging import CaseSource, SourceGrid
from rfss_core.imaging.case import UNKNOWN
from rfss_core.quality.decision import Decision
from rfss_core.store.images import StoredCase

LabelSource = Literal["pseudo-label", "expert", "reviewed"]
Part = Literal["train", "test"]


@dataclass(frozen=True)
class ExportCase:
    """One case of an export; opens nothing until it is asked."""

    id: str
    """Safe ASCII, unique."""
    name: str
    """The source's relative path without its extension."""
    patient: str
    label_source: LabelSource
    part: Part
    label_digest: str
    """Digest of the label map before the export's own changes to it."""
    stored: StoredCase
    """The image, as the workspace holds it."""
    read_labels: Callable[[], npt.NDArray[np.uint8]]
    """Returns the label map, uint8 [Z, H, W], ignored voxels included."""
    find_source: Callable[[], CaseSource]
    """Returns the files that the image came from, checked to be the ones that were labelled; raises ``CaseError``."""
    modality: str = UNKNOWN
    body_part: str = UNKNOWN
    weight: float = 1.0
    """Confidence, 0 to 1; 1 for an expert's label map."""
    entry: DatasetEntry | None = None
    """The pseudo-label's line of the data set's manifest; None for an expert's label map."""

    @property
    def decision(self) -> Decision | None:
        """Accept, review or reject; None for an expert's label map."""
        return None if self.entry is None else self.entry.decision

    @property
    def predicted_dice(self) -> float | None:
        """Predicted Dice; None where nothing was predicted, and for an expert's label map."""
        return None if self.entry is None else self.entry.predicted_dice

    @property
    def lower(self) -> float | None:
        """Lower bound on Dice, as :attr:`predicted_dice`."""
        return None if self.entry is None else self.entry.lower

    @property
    def grid(self) -> SourceGrid:
        """The source's grid."""
        return self.stored.grid


@dataclass(frozen=True)
class ExportSet:
    """All cases of an export and what they have in common."""

    name: str
    """Name of the data set."""
    digest: str
    """Digest of the data set that the pseudo-labels come from."""
    classes: dict[int, str]
    """Label value to name, ``ignore`` included where voxels are ignored."""
    cases: tuple[ExportCase, ...]
    """By id."""
    ignore: int | None = None
    """Label value of ignored voxels."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What the data set's manifest keeps beside its content."""

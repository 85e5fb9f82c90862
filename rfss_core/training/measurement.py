"""A trained network on test cases: label maps, and the metrics that every other segmenter is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rfss_core.quality import CaseMeasurement, case_metrics
from rfss_core.settings import QualitySettings
from rfss_core.training.model import SupervisedModel
from rfss_core.training.segmenter import SupervisedSegmenter
from rfss_core.training.student_data import ExpertCase, StudentSlices


@dataclass(frozen=True)
class _Near:
    """What a network makes of its neighbours: nothing."""

    indices: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]

    def for_class(self, value: int, /) -> npt.NDArray[np.int64]:  # noqa: ARG002 - the same for every class
        return self.indices


def label_case(
    model: SupervisedModel, case: ExpertCase, classes: Mapping[int, str], device: torch.device
) -> npt.NDArray[np.uint8]:
    """Label the slices of one case, uint8 [Z, H, W] on its own grid."""
    slices = StudentSlices([case], classes, None)
    near = _Near(np.array([0]), np.zeros(1, np.float32))
    images = list(case.image())
    found = SupervisedSegmenter(model, device).segment(images, [near] * len(images), slices, keep_logits=False)
    return np.stack([one.labels for one in found])


def measure_student(
    model: SupervisedModel,
    cases: Sequence[ExpertCase],
    classes: Mapping[int, str],
    device: torch.device,
    settings: QualitySettings,
    progress: Callable[[ExpertCase], None] = lambda _: None,
) -> list[CaseMeasurement]:
    """Measure a network on cases that it never saw.

    Args:
        model: the network.
        cases: of patients who neither trained nor validated.
        classes: label value to name.
        device: where it computes.
        settings: tolerance of the surface Dice.
        progress: called after every case.

    Returns:
        One measurement a case, volume metrics as :func:`rfss_core.quality.case_metrics` takes them.
    """
    found = []
    for case in cases:
        labels = label_case(model, case, classes, device)
        metrics = case_metrics(labels, case.label(), classes, case.spacing, settings.surface_tolerance)
        found.append(CaseMeasurement(case.id, case.patient, tuple(metrics)))
        progress(case)
    return found

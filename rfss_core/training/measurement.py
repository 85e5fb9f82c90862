"""A trained network on test cases: label maps, and the metrics that every other segmenter is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from rfss_core.quality import CaseMeasurement, case_metrics
from rfss_core.settings import QualitySettings
from rfss_core.training.expert_case import ExpertCase
from rfss_core.training.model import SupervisedModel
from rfss_core.training.segmenter import SupervisedSegmenter


def label_case(model: SupervisedModel, case: ExpertCase, device: torch.device) -> npt.NDArray[np.uint8]:
    """Label the slices of one case, uint8 [Z, H, W] on its own grid."""
    found = SupervisedSegmenter(model, device).label(list(case.image()))
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
        labels = label_case(model, case, device)
        metrics = case_metrics(labels, case.label(), classes, case.spacing, settings.surface_tolerance)
        found.append(CaseMeasurement(case.id, case.patient, tuple(metrics)))
        progress(case)
    return found

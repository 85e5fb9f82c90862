"""Figures of one evaluation: what ``rfss evaluate`` writes and a study collects."""

from __future__ import annotations

from pydantic import BaseModel


class CaseResult(BaseModel):
    """One test case."""

    case: str
    patient: str
    dice: dict[str, float]
    hd95: dict[str, float]
    dice_by_third: dict[str, dict[str, float]] = {}
    """Per third of the labelled slices (``large end``, ``middle``, ``small end``), then per class that it shows."""


class Evaluation(BaseModel):
    """Figures of one method. Means are over test patients; None where a class occurs in no test case."""

    dice: dict[str, float | None]
    """Per class and ``mean``."""
    hd95: dict[str, float | None]
    """Per class and ``mean``, mm."""
    per_case: list[CaseResult]
    label_fusion_dice: dict[str, float | None]
    """The same cases labelled by majority vote of the same retrieved masks."""
    slices_per_second: float
    """Test slices over the seconds of the segmentation stage: reading, retrieval, models and writing."""
    segmented_now: int | None = None
    """Slices that this run segmented; the others it read from its workspace, and then the speed is that of reading."""
    processor_seconds: float | None = None
    """Processor seconds of the segmentation stage, all threads; None where other processes did the work."""
    seconds: dict[str, float]
    preset: str
    k: int
    strategy: str
    segmenter: str
    points: tuple[int, int] | None
    """Points inside and outside each class that ``sam2-points`` drew; None for other segmenters."""
    seed: int
    support_slices: int
    support_patients: int
    test_patients: int
    support_patient_names: list[str] = []
    """Patients of the support set, sorted."""
    support_digest: str = ""
    """Digest of the support slices' pixels, masks, patients and classes."""
    refused: int
    """Test cases that retrieval could not serve with k support slices; they are not measured."""
    models: dict[str, str]
    """sha256 of the weights."""
    metrics: str
    """Library that computed the metrics."""
    code: str

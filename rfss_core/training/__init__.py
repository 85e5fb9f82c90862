"""Supervised networks: trained on labelled slices, measured like every other segmenter."""

from rfss_core.training.checkpoint import Checkpoints, Round
from rfss_core.training.labelled import LabelledSlices, Provenance
from rfss_core.training.model import NetworkSpec, SupervisedModel
from rfss_core.training.segmenter import SupervisedSegmenter
from rfss_core.training.trainer import HABITS, train_supervised

__all__ = [
    "HABITS",
    "Checkpoints",
    "LabelledSlices",
    "NetworkSpec",
    "Provenance",
    "Round",
    "SupervisedModel",
    "SupervisedSegmenter",
    "train_supervised",
]

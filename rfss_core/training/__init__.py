"""Supervised networks: trained on labelled slices, measured like every other segmenter."""

from rfss_core.training.model import NetworkSpec, SupervisedModel
from rfss_core.training.segmenter import SupervisedSegmenter
from rfss_core.training.trainer import LabelledSlices, Round, train_supervised

__all__ = ["LabelledSlices", "NetworkSpec", "Round", "SupervisedModel", "SupervisedSegmenter", "train_supervised"]

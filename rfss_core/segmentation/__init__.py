"""From retrieved slices to labels: SAM 2 memories and label fusion."""

from rfss_core.segmentation.factory import load_segmenter
from rfss_core.segmentation.segmenter import Segmentation, Segmenter

__all__ = ["Segmentation", "Segmenter", "load_segmenter"]

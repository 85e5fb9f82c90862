"""From retrieved slices to labels: SAM 2 memories and label fusion."""

from rfss_core.segmentation.segmenter import Segmentation, Segmenter, load_segmenter

__all__ = ["Segmentation", "Segmenter", "load_segmenter"]

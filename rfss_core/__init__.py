"""RFSS: retrieval-augmented few-shot segmentation of medical images."""

__version__ = "0.1.0"

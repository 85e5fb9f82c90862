"""Builds the embedded models of :mod:`rfss_core.weights`: packing, in-context training, evaluation, export.

``python -m rfss_core.pretraining --help`` lists the commands; docs/model-card.md says what came out of them.
"""

"""Prefect tasks of the labelling pipeline, one stage a file."""

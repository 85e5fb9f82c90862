"""Measuring the embedded models: patients of supports and queries, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfss_core.errors import SupportError
from rfss_core.pretraining.evaluation import Protocol, Split, case_dice, presence_errors, split
from rfss_core.pretraining.source import Slices


def cohort(patients: int, slices: int, first: int = 0) -> Slices:
    """Return volumes of ``slices`` slices; the middle half of each shows class 1."""
    count = patients * slices
    labels = np.zeros((count, 8, 8), np.uint8)
    place = np.arange(count) % slices
    labels[(place >= slices // 4) & (place < slices - slices // 4), 2:6, 2:6] = 1
    names = np.array([f"p{first + row // slices:03d}" for row in range(count)])
    rng = np.random.default_rng(0)
    return Slices(
        images=rng.integers(0, 255, (count, 8, 8), dtype=np.uint8),
        labels=labels,
        patients=names,
        cases=names,
        positions=(place / slices).astype(np.float32),
        axes=np.full(count, 2, np.uint8),
    )


@given(seed=st.integers(0, 1000), pooled=st.booleans())
def test_supports_and_queries_share_no_patient(seed: int, pooled: bool):
    measured, others = cohort(6, 8), cohort(5, 8, first=100)
    protocol = Protocol(support_slices=12, support_patients=3, query_patients=2)
    parts = split(measured, protocol, seed, others if pooled else None)
    support, queries = set(parts.support.patients), set(parts.queries.patients)
    assert not support & queries
    assert len(support) >= 3
    assert len(queries) == 2
    assert len(parts.support) == 12
    assert parts.support.labels.reshape(12, -1).any(1).all()
    # Whole volumes, the slices without the class among them.
    assert len(parts.queries) == 16
    assert support <= set((others if pooled else measured).patients)
    assert queries <= set(measured.patients)


def test_too_few_patients_are_told():
    with pytest.raises(SupportError, match="lower support_slices"):
        split(cohort(3, 8), Protocol(support_slices=12, support_patients=3), 0)


def test_presence_errors_count_slices_by_class():
    queries = cohort(1, 8)
    parts = Split(queries, queries)
    truth = torch.from_numpy(queries.labels)
    assert presence_errors(parts, truth) == {"false": 0.0, "missed": 0.0}
    everywhere = torch.ones_like(truth)
    assert presence_errors(parts, everywhere) == {"false": 1.0, "missed": 0.0}
    nowhere = torch.zeros_like(truth)
    assert presence_errors(parts, nowhere) == {"false": 0.0, "missed": 1.0}
    assert case_dice(parts, truth)["mean"] == 1.0
    assert case_dice(parts, nowhere)["mean"] == 0.0

"""Which patients never train: the deterministic hold-out of every set.

A patient's place is decided by the sha256 of ``<set>/<patient>``, so the lists depend on nothing but the names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from rfss_core.digest import digest_bytes

Part = Literal["train", "validation", "test"]

HELD_OUT_PATIENTS: dict[str, int] = {"hippocampus": 40}
"""Sets with a fixed number of test patients; every other set keeps a fifth."""

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
"""Share of the patients left for training that only choose checkpoints."""


def assign_parts(split_set: str, patients: Iterable[str]) -> dict[str, Part]:
    """Assign every patient of a set to training, validation or test.

    Args:
        split_set: name under which patients are hashed. Sets that share patients share this name: ``prostate`` for
            MR and ultrasound of the same men, ``fetal-head`` for both copies of HC18.
        patients: identifiers; duplicates are ignored.

    Returns:
        The part of each patient. The patients with the smallest hashes are test patients, the next ones validate.
    """
    ordered = sorted(set(patients), key=lambda patient: digest_bytes(f"{split_set}/{patient}".encode()))
    test = HELD_OUT_PATIENTS.get(split_set, math.ceil(TEST_SHARE * len(ordered)))
    validation = math.ceil(VALIDATION_SHARE * (len(ordered) - test))
    return {
        patient: "test" if rank < test else "validation" if rank < test + validation else "train"
        for rank, patient in enumerate(ordered)
    }

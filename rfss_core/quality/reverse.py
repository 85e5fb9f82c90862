"""The reverse check: a pseudo-label serves as support for slices whose masks are known.

Reverse classification accuracy (Valindria et al., "Reverse Classification Accuracy: Predicting Segmentation
Performance in the Absence of Ground Truth", IEEE TMI 36(8), 2017): a segmenter that learns from one pseudo-labelled
image alone is tried on images with expert labels. A wrong pseudo-label teaches wrongly. There the reverse segmenter is
trained or registered; here it is the same SAM 2 with the pseudo-labelled slices as its memories, and the labelled
slices are the nearest ones, which retrieval found anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rfss_core.quality.agreement import ProbedCase
from rfss_core.quality.overlap import Overlap, overlap
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.segmentation import Segmenter
from rfss_core.segmentation.segmenter import Supports, read_support


def reverse_check(cases: Sequence[ProbedCase], segmenter: Segmenter, support: Supports) -> list[Overlap]:
    """Segment labelled neighbours of each case from the case's own pseudo-labelled slices.

    Args:
        cases: the cases; all their references go through the segmenter together.
        segmenter: the one that made the pseudo-labels, with memories that are not kept (see :func:`forgetful`).
        support: the support set that the neighbours point into.

    Returns:
        For each case the overlap of the experts' and the reverse masks: one row a reference slice, as many as the case
        has probed slices or fewer where neighbours repeat; one column a class by rising value.
    """
    values = sorted(support.classes)
    slices = [image for case in cases for image in case.slices]
    if not slices:
        return [overlap([], values) for _ in cases]
    labels = [mask for case in cases for mask in case.labels]
    reverse = SupportSet.from_arrays(slices, labels, classes=dict(support.classes))
    known, serving, owner = [], [], []
    first = 0
    for number, case in enumerate(cases):
        own = np.arange(first, first + len(case.slices), dtype=np.int64)
        first += len(case.slices)
        for row in reference_rows(case.neighbours):
            known.append(read_support(support, row))
            serving.append(Neighbours(own, np.zeros(len(own), dtype=np.float32)))
            owner.append(number)
    found = segmenter.segment([image for image, _ in known], serving, reverse, keep_logits=False)
    pairs = [(mask, one.labels) for (_, mask), one in zip(known, found, strict=True)]
    return [
        overlap([pair for pair, of in zip(pairs, owner, strict=True) if of == number], values)
        for number in range(len(cases))
    ]


def reference_rows(neighbours: Sequence[Neighbours]) -> list[int]:
    """Return as many distinct rows of the support set as slices are given: all nearest ones, then all second ones.

    Args:
        neighbours: of the probed slices of a case.
    """
    rows: dict[int, None] = {}
    for rank in range(max((len(one) for one in neighbours), default=0)):
        for one in neighbours:
            if rank < len(one) and len(rows) < len(neighbours):
                rows[int(one.indices[rank])] = None
    return list(rows)


def forgetful(segmenter: Segmenter) -> Segmenter:
    """Return the same segmenter with a small memory bank of its own, behind which nothing is stored.

    Pseudo-labelled slices serve once; they must not fill the store that support slices' memories are kept in.

    Args:
        segmenter: any.
    """
    from rfss_core.segmentation.engine import MemorySegmenter
    from rfss_core.segmentation.memory import MemoryBank

    if not isinstance(segmenter, MemorySegmenter):
        return segmenter
    return MemorySegmenter(
        segmenter.adapter,
        MemoryBank(segmenter.bank.identity, 64 * 2**20),
        segmenter.settings,
        mode=segmenter.mode,
        trained=segmenter.trained,
    )

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


def reverse_check(case: ProbedCase, chosen: Sequence[int], segmenter: Segmenter, support: Supports) -> Overlap:
    """Segment labelled neighbours from pseudo-labelled slices of one case.

    Args:
        case: the case.
        chosen: positions of the slices that become the supports, see
            :func:`rfss_core.quality.agreement.probed_slices`.
        segmenter: the one that made the pseudo-label; one whose memories are not kept (see :func:`forgetful`).
        support: the support set that ``case.neighbours`` point into.

    Returns:
        Overlap of the expert's and the reverse mask, one row a reference slice, one column a class by rising value. As
        many references as slices were chosen, or fewer where neighbours repeat.
    """
    values = sorted(support.classes)
    references = reference_rows(case.neighbours, chosen)
    if not references:
        return overlap([], values)
    reverse = SupportSet.from_arrays(
        [case.slices[z] for z in chosen], [case.labels[z] for z in chosen], classes=dict(support.classes)
    )
    everyone = Neighbours(np.arange(len(chosen), dtype=np.int64), np.zeros(len(chosen), dtype=np.float32))
    known = [read_support(support, row) for row in references]
    found = segmenter.segment([image for image, _ in known], [everyone] * len(known), reverse, keep_logits=False)
    return overlap([(mask, one.labels) for (_, mask), one in zip(known, found, strict=True)], values)


def reference_rows(neighbours: Sequence[Neighbours], chosen: Sequence[int]) -> list[int]:
    """Return as many distinct rows of the support set as slices were chosen: all nearest ones, then all second ones.

    Args:
        neighbours: of all slices of a case.
        chosen: positions of slices.
    """
    rows: dict[int, None] = {}
    for rank in range(max((len(neighbours[z]) for z in chosen), default=0)):
        for z in chosen:
            if rank < len(neighbours[z]) and len(rows) < len(chosen):
                rows[int(neighbours[z].indices[rank])] = None
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

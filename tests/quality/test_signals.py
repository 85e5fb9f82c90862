from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from rfss_core.errors import InputError
from rfss_core.quality import SIGNALS, SegmentedCase, signals_of
from rfss_core.quality.agreement import Agreement, ProbedCase, every_second, probed_slices, subset_agreement
from rfss_core.quality.assessment import Assessor, PseudoLabelledCase
from rfss_core.quality.evidence import SegmentedSlice, evidence_table, uncertainty_map
from rfss_core.quality.overlap import overlap
from rfss_core.quality.reverse import reference_rows, reverse_check
from rfss_core.quality.voxels import voxel_counts, voxel_curve
from rfss_core.retrieval import Neighbours, SupportSet
from rfss_core.segmentation import Segmentation
from rfss_core.segmentation.label_fusion import LabelFusionSegmenter

VOTE = LabelFusionSegmenter()


def near(*rows: int) -> Neighbours:
    return Neighbours(np.array(rows, np.int64), np.linspace(0.1, 0.3, len(rows), dtype=np.float32))


def squares(*sides: int) -> SupportSet:
    """Support slices with one square each, from the upper left corner."""
    masks = np.zeros((len(sides), 20, 20), np.uint8)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = 1
    return SupportSet.from_arrays(masks / 2, masks)


def segmentation(labels: np.ndarray, logits: np.ndarray | None, score: float = 3.0) -> Segmentation:
    return Segmentation(labels, np.array([score], np.float32), np.array([0.8], np.float32), logits)


def evidence_of(labels: np.ndarray, logits: np.ndarray | None, vote: np.ndarray) -> pd.DataFrame:
    slices = [
        SegmentedSlice(
            segmentation(one, None if logits is None else logits[z][None]), segmentation(vote[z], None), near(0, 1)
        )
        for z, one in enumerate(labels)
    ]
    return evidence_table("x", slices, [1], 0.0)


def test_signals_of_a_known_case() -> None:
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[:2, :2] = 1
    logits = np.where(labels > 0, 4.0, -4.0).astype(np.float32)
    logits[0, 0] = 0.5
    vote = labels.copy()
    vote[1] = 0
    agreed = Agreement((1,), overlap([(labels[1], vote[0])], [1]))
    reverse = overlap([(labels[0], labels[2]), (labels[0], labels[1])], [1])
    found = signals_of(SegmentedCase(labels, [1], evidence_of(labels, logits, vote), agreed, reverse))
    assert set(found.case) == set(SIGNALS)
    expected = {
        "predicted_iou": 0.8, "object_score": 3.0, "object_margin": 3.0, "stability": 12 / 16,
        "fusion_agreement": 2 * 8 / 24, "vote_iou": 0.8, "nearest_distance": 0.1, "mean_distance": 0.2,
        "foreground_fraction": 16 / 48, "slice_overlap": 2 * 8 / 24, "largest_part": 1.0, "subset_agreement": 1.0,
        "reverse_dice": 2 * 8 / 24, "fusion_ratio": math.log(26 / 18),
    }  # fmt: skip
    assert {name: found.case[name] for name in expected} == pytest.approx(expected)
    assert found.by_class[1] == pytest.approx(found.case)
    assert 0 < found.case["entropy"] < 1
    assert 0.7 < found.case["expected_dice"] < 1
    assert [one["subset_agreement"] for one in found.by_slice] == pytest.approx([math.nan, 1, math.nan], nan_ok=True)
    assert [one["slice_overlap"] for one in found.by_slice] == pytest.approx([1, 0.5, 0])
    assert [one["foreground_fraction"] for one in found.by_slice] == [0.5, 0.5, 0]


def test_what_does_not_apply_is_nan_and_what_contradicts_is_refused() -> None:
    empty = np.zeros((1, 4, 4), np.uint8)
    found = signals_of(SegmentedCase(empty, [1], evidence_of(empty, None, empty)))
    for name in ("stability", "expected_dice", "entropy", "predicted_iou", "reverse_dice", "slice_overlap"):
        assert math.isnan(found.case[name])
    assert found.case["foreground_fraction"] == 0
    with pytest.raises(InputError, match="needs 2 rows"):
        SegmentedCase(empty, [1, 2], evidence_of(empty, None, empty))


def test_uncertainty_is_high_where_two_labels_are_close_and_an_absent_class_is_certain() -> None:
    logits = np.array([[[8.0, 0.1, -8.0]], [[-8.0, 0.0, -8.0]]], np.float32)
    found = Segmentation(
        np.array([[1, 1, 0]], np.uint8), np.array([3.0, 3.0], np.float32), np.ones(2, np.float32), logits
    )
    levels = uncertainty_map(found, 0.0)
    assert levels is not None
    assert levels[0, 1] > 230 > 10 > max(levels[0, 0], levels[0, 2])
    gated = Segmentation(found.labels, np.array([-1.0, -1.0], np.float32), found.predicted_iou, logits)
    assert uncertainty_map(gated, 0.0).max() == 0  # type: ignore[union-attr]
    assert uncertainty_map(Segmentation(found.labels, found.object_score, found.predicted_iou, None), 0.0) is None


def test_ignoring_uncertain_voxels_finds_errors_first() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (2, 40, 40)).astype(np.uint8)
    truth = rng.integers(0, 2, levels.shape).astype(np.uint8)
    labels = np.where(rng.random(levels.shape) < levels / 400, 1 - truth, truth).astype(np.uint8)
    curve = voxel_curve(voxel_counts(levels, labels, truth))
    assert curve[0].ignored == curve[0].errors_found == 1
    assert all(point.errors_found >= point.ignored for point in curve)
    assert curve[8].error_rate < (labels != truth).mean()
    assert voxel_curve([]) == ()


def test_probed_slices_have_foreground_and_stay_within_their_share() -> None:
    labels = np.zeros((20, 3, 3), np.uint8)
    labels[5:15] = 1
    assert probed_slices(labels, 0.2) == [6, 8, 11, 13]
    assert probed_slices(labels, 1.0) == list(range(5, 15))
    assert probed_slices(labels[:6], 0.15) == []
    assert probed_slices(labels[:5], 1.0) == []


def test_supports_that_agree_give_agreement_and_those_that_do_not_do_not() -> None:
    support = squares(10, 10, 10, 10, 4, 4)
    labels = support.mask(0)
    same = ProbedCase((2,), [support.image(0)], [labels], [near(0, 1, 2, 3)])
    mixed = ProbedCase((0,), [support.image(0)], [labels], [near(0, 4, 1, 5)])
    lonely = ProbedCase((1,), [support.image(0)], [labels], [near(0)])
    agreements = subset_agreement([same, mixed, lonely], VOTE, support)
    assert agreements[0].positions == (2,)
    assert agreements[0].overlap.pooled[0] == 1
    assert agreements[1].overlap.pooled[0] == pytest.approx(2 * 16 / 116)
    assert agreements[2].positions == ()
    half = every_second(
        Neighbours(np.array([7, 8, 9]), np.zeros(3, np.float32), {1: np.array([7, 9]), 2: np.array([8, 7])})
    )
    assert half is not None
    assert half.by_class is not None
    assert (half.by_class[1].tolist(), half.by_class[2].tolist(), half.indices.tolist()) == ([9], [7], [7, 9])


def test_a_wrong_pseudo_label_fails_the_reverse_check() -> None:
    support = squares(10, 10, 12)
    right = ProbedCase((0,), [support.image(0)], [support.mask(0)], [near(1, 2)])
    wrong = ProbedCase((0,), [support.image(0)], [np.flip(support.mask(0)).copy()], [near(1, 2)])
    empty = ProbedCase((), [], [], [])
    scores = reverse_check([right, empty, wrong], VOTE, support)
    assert scores[0].pooled[0] == 1
    assert len(scores[1].both) == 0
    assert scores[2].pooled[0] == 0
    assert reference_rows([near(4, 5), near(4, 6), near(7)]) == [4, 7, 5]


def test_an_assessor_probes_the_same_alone_and_in_company() -> None:
    support = squares(10, 10, 8, 6)
    cases = []
    for rows in ([0, 1, 2, 3], [2, 3, 0, 1]):
        slices = [support.image(rows[0])] * 4
        found = VOTE.segment(slices, [near(*rows)] * 4, support)
        labels = np.stack([one.labels for one in found])
        table = evidence_table("x", [SegmentedSlice(one, one, near(*rows)) for one in found], [1], 0.0)
        cases.append(PseudoLabelledCase(labels, table, slices, [near(*rows)] * 4))
    assessor = Assessor(support, VOTE, 0.5)
    together = assessor.assess(cases)
    assert [one.case for one in together] == [assessor.assess([case])[0].case for case in cases]
    assert all(math.isfinite(one.case["reverse_dice"]) for one in together)
    bare = Assessor(support, None, 0.5).assess(cases)[0]
    assert math.isnan(bare.case["subset_agreement"])

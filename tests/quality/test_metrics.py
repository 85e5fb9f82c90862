from __future__ import annotations

import math
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from rfss_core.errors import GeometryError, LabelError
from rfss_core.quality import METRICS_LIBRARY, case_metrics, slice_metrics
from rfss_core.quality.metrics import ClassMetric

CLASSES = {1: "kidney", 2: "tumour"}
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

shapes = st.tuples(st.integers(1, 5), st.integers(2, 9), st.integers(2, 9))
pairs = shapes.flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 2]))] * 2)
)
spacings = st.tuples(*[st.floats(0.3, 9.0)] * 3)


def reference_hd95(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing: tuple[float, ...]
) -> float:
    """HD95 by Euclidean distance transforms: another algorithm than MONAI's, sharing no code."""
    return float(max(np.percentile(one, 95) for one in surface_distances(prediction, truth, spacing)))


def reference_asd(prediction: Mask, truth: Mask, spacing: tuple[float, ...]) -> float:
    return float(np.concatenate(surface_distances(prediction, truth, spacing)).mean())


def surface_distances(prediction: Mask, truth: Mask, spacing: tuple[float, ...]) -> list[npt.NDArray[np.float64]]:
    if truth.shape[0] == 1:
        prediction, truth, spacing = prediction[0], truth[0], spacing[1:]
    prediction, truth = np.pad(prediction, 1), np.pad(truth, 1)
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth)]
    return [ndimage.distance_transform_edt(~other, sampling=spacing)[own] for own, other in (edges, edges[::-1])]


@settings(max_examples=25, deadline=None)
@given(pairs, spacings)
def test_dice_and_hd95_agree_with_numpy_and_scipy(pair: tuple[Labels, Labels], spacing: tuple[float, ...]) -> None:
    prediction, truth = pair
    for metric in case_metrics(prediction, truth, CLASSES, spacing):
        mine, theirs = prediction == metric.value, truth == metric.value
        if mine.any() and theirs.any():
            assert metric.dice == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()), abs=1e-6)
            assert metric.hd95 == pytest.approx(reference_hd95(mine, theirs, spacing), rel=1e-4, abs=1e-5)
            assert metric.iou == pytest.approx((mine & theirs).sum() / (mine | theirs).sum(), abs=1e-6)
            assert metric.surface_distance == pytest.approx(reference_asd(mine, theirs, spacing), rel=1e-4, abs=1e-5)
            unit = math.prod(spacing) / 1000 if len(truth) > 1 else spacing[1] * spacing[2] / 100
            assert metric.volume_difference == pytest.approx((int(mine.sum()) - int(theirs.sum())) * unit, abs=1e-9)
            assert metric.presence == "both"
        else:
            assert metric.presence != "both"


@settings(max_examples=30, deadline=None)
@given(pairs, spacings)
def test_metrics_are_symmetric_bounded_and_perfect_on_themselves(
    pair: tuple[Labels, Labels], spacing: tuple[float, ...]
) -> None:
    prediction, truth = pair
    there, back = case_metrics(prediction, truth, CLASSES, spacing), case_metrics(truth, prediction, CLASSES, spacing)
    diagonal = math.hypot(*(n * step for n, step in zip(truth.shape, spacing, strict=True)))
    for one, other in zip(there, back, strict=True):
        assert (one.dice, one.hd95) == pytest.approx((other.dice, other.hd95))
        assert 0 <= one.dice <= 1
        assert 0 <= one.hd95 <= diagonal * (1 + 1e-6)
    for metric in case_metrics(truth, truth, CLASSES, spacing):
        assert (metric.dice, metric.hd95) == (1, 0)


@settings(max_examples=30, deadline=None)
@given(pairs, spacings, st.tuples(*[st.integers(0, 4)] * 4))
def test_empty_space_around_changes_nothing(
    pair: tuple[Labels, Labels], spacing: tuple[float, ...], margins: tuple[int, ...]
) -> None:
    # Cropping to the bounding box must be invisible; slices stay as they are, for one slice is measured in its plane.
    widths = [(0, 0), margins[:2], margins[2:]]
    wide = [np.pad(labels, widths) for labels in pair]
    for near, far in zip(
        case_metrics(*pair, CLASSES, spacing), case_metrics(wide[0], wide[1], CLASSES, spacing), strict=True
    ):
        assert near.dice == far.dice
        assert near.presence == far.presence
        if near.presence in ("both", "both_empty"):
            assert near.hd95 == pytest.approx(far.hd95, abs=1e-6)


@given(pairs, spacings, st.floats(0.2, 5))
@settings(max_examples=20, deadline=None)
def test_hd95_scales_with_the_spacing(pair: tuple[Labels, Labels], spacing: tuple[float, ...], factor: float) -> None:
    scaled = [step * factor for step in spacing]
    for plain, zoomed in zip(case_metrics(*pair, CLASSES, spacing), case_metrics(*pair, CLASSES, scaled), strict=True):
        assert zoomed.hd95 == pytest.approx(plain.hd95 * factor, rel=1e-4, abs=1e-5)
        assert zoomed.dice == plain.dice


def test_empty_masks_follow_the_documented_convention() -> None:
    empty = np.zeros((4, 6, 8), np.uint8)
    full = np.ones_like(empty)
    spacing = (3.0, 1.0, 0.5)
    diagonal = math.hypot(12, 6, 4)
    one = {1: "liver"}
    volume = 1.5 / 1000 * empty.size
    nothing = ClassMetric(1, "liver", 1.0, 0.0, "both_empty", 1.0, 0.0, 1.0, 0.0, 0.0)
    missed = ClassMetric(1, "liver", 0.0, diagonal, "missed", 0.0, diagonal, 0.0, -volume, volume)
    spurious = ClassMetric(1, "liver", 0.0, diagonal, "spurious", 0.0, diagonal, 0.0, volume, 0.0)
    assert case_metrics(empty, empty, one, spacing) == [nothing]
    assert case_metrics(empty, full, one, spacing) == [missed]
    assert case_metrics(full, empty, one, spacing) == [spurious]


def test_a_single_slice_is_measured_in_its_plane() -> None:
    # In three dimensions all voxels of a slice lie on the surface, and the shift of a large disc would look small.
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 30) ** 2 + (columns - 30) ** 2 < 20**2).astype(np.uint8)[None]
    metric = case_metrics(np.roll(disc, 4, axis=2), disc, {1: "head"}, (1, 0.5, 0.5))[0]
    assert metric.hd95 == pytest.approx(2.0, abs=0.1)


def test_far_and_thin_on_anisotropic_voxels() -> None:
    truth, prediction = np.zeros((2, 5, 9, 9), np.uint8)
    truth[1, 4, 4] = prediction[3, 4, 4] = 1
    assert case_metrics(prediction, truth, {1: "vessel"}, (5.0, 1.0, 1.0))[0].hd95 == pytest.approx(10.0)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, float("nan"), 1), (1, 1, -2), (1, float("inf"), 1), (1, 1), ()])
def test_bad_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    labels = np.ones((2, 3, 3), np.uint8)
    with pytest.raises(GeometryError, match="spacing") as raised:
        case_metrics(labels, labels, {1: "a"}, spacing)
    assert raised.value.reason == "bad_spacing"


def test_bad_label_maps_are_refused() -> None:
    labels = np.ones((2, 3, 3), np.uint8)
    with pytest.raises(GeometryError, match=r"\(2, 3, 3\).*\(1, 3, 3\)"):
        case_metrics(labels, labels[:1], {1: "a"}, (1, 1, 1))
    with pytest.raises(LabelError, match=r"truth holds label values \[7\]"):
        case_metrics(labels, labels * 7, {1: "a"}, (1, 1, 1))
    with pytest.raises(LabelError, match="float32"):
        case_metrics(labels.astype(np.float32), labels, {1: "a"}, (1, 1, 1))  # type: ignore[arg-type]


def test_real_hearts_agree_with_the_second_computation(shared_data: Path) -> None:
    classes = {1: "RV", 2: "Myo", 3: "LV"}
    case_metrics(np.ones((1, 2, 2), np.uint8), np.ones((1, 2, 2), np.uint8), {1: "warm"}, (1, 1, 1))
    seconds = 0.0
    for path in sorted((shared_data / "acdc" / "labels").iterdir())[:2]:
        image = nib.load(path)
        truth = np.moveaxis(np.asarray(image.dataobj).astype(np.uint8), -1, 0)  # type: ignore[attr-defined]
        x, y, z = (float(step) for step in image.header.get_zooms())  # type: ignore[attr-defined]
        prediction = np.roll(truth, 3, axis=1)
        started = time.perf_counter()
        metrics = case_metrics(prediction, truth, classes, (z, x, y))
        seconds += time.perf_counter() - started
        for metric in metrics:
            expected = reference_hd95(prediction == metric.value, truth == metric.value, (z, x, y))
            assert metric.hd95 == pytest.approx(expected, rel=1e-4)
    # 200 volumes must stay a matter of minutes, with room for a busy machine.
    assert seconds / 2 < 6


def test_the_library_is_named() -> None:
    import monai

    assert f"MONAI {monai.__version__}" == METRICS_LIBRARY


def test_surface_dice_is_that_of_deepminds_library() -> None:
    surface_distance = pytest.importorskip("surface_distance")
    rng = np.random.default_rng(0)
    for spacing in [(3.0, 1.0, 0.7), (1.0, 1.0, 1.0)]:
        blobs = [ndimage.gaussian_filter(rng.normal(size=(7, 24, 24)), 2) > 0.02 for _ in range(2)]
        with warnings.catch_warnings():
            # The library's last release reaches SciPy's filters by their old names.
            warnings.simplefilter("ignore", DeprecationWarning)
            distances = surface_distance.compute_surface_distances(blobs[1], blobs[0], spacing)
        for tolerance in (0.0, 1.0, 2.5):
            expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
            labels = [blob.astype(np.uint8) for blob in blobs]
            metric = case_metrics(labels[0], labels[1], {1: "blob"}, spacing, tolerance)[0]
            assert metric.surface_dice == pytest.approx(expected, abs=1e-5)


def test_slices_are_measured_each_in_its_plane() -> None:
    rng = np.random.default_rng(1)
    prediction, truth = (rng.integers(0, 3, (2, 3, 8, 8))).astype(np.uint8)
    truth[1] = 0
    by_slice = slice_metrics(prediction, truth, CLASSES, (9.0, 1.0, 1.0))
    for z, metrics in enumerate(by_slice):
        alone = case_metrics(prediction[z : z + 1], truth[z : z + 1], CLASSES, (9.0, 1.0, 1.0))
        assert metrics == alone
    assert {metric.presence for metric in by_slice[1]} == {"spurious"}

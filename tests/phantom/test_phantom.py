"""Phantoms: what their labels promise about anatomy, and that a seed is a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rfss_core.phantom import CLASSES, Acquisition, Anatomy, Phantom, PhantomSettings
from rfss_core.phantom.anatomy import PHASES, Outline

SMALL = PhantomSettings(rows=96, columns=96, slices=6, pixel_mm=2.0, step_mm=13.0)
RV, MYO, LV = 1, 2, 3

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def labels_of(anatomy: Anatomy, phase: str) -> np.ndarray:
    """Label maps at 1 mm in planes 5 mm apart, finer than any scan, so that only anatomy is tested."""
    axis = np.arange(-80.0, 80.0)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([anatomy.labels(x, y, depth, phase) for depth in np.arange(-5.0, 105.0, 5.0)])


def draw(seed: int) -> Anatomy:
    return Anatomy.draw(np.random.default_rng(seed))


@few
@given(seed=seeds)
def test_myocardium_separates_the_left_cavity_from_everything_else(seed: int) -> None:
    anatomy = draw(seed)
    cross = ndimage.generate_binary_structure(2, 1)
    for phase in PHASES:
        for plane in labels_of(anatomy, phase):
            around = ndimage.binary_dilation(plane == LV, cross) & (plane != LV)
            assert set(np.unique(plane[around])) <= {MYO}


@few
@given(seed=seeds)
def test_the_right_cavity_lies_against_the_septum(seed: int) -> None:
    anatomy = draw(seed)
    for phase in PHASES:
        for plane in labels_of(anatomy, phase):
            if (plane == RV).sum() > 20:
                assert (ndimage.binary_dilation(plane == RV) & (plane == MYO)).any()


@few
@given(seed=seeds)
def test_each_structure_is_one_piece_in_a_plane(seed: int) -> None:
    anatomy = draw(seed)
    for phase in PHASES:
        for plane in labels_of(anatomy, phase):
            for value in (MYO, LV):
                assert ndimage.label(plane == value, np.ones((3, 3)))[1] <= 1


@few
@given(seed=seeds)
def test_the_heart_empties_and_its_muscle_stays(seed: int) -> None:
    anatomy = draw(seed)
    relaxed, squeezed = (labels_of(anatomy, phase) for phase in PHASES)
    ejected = 1 - (squeezed == LV).sum() / (relaxed == LV).sum()
    assert 0.2 < ejected < 0.85
    assert (squeezed == RV).sum() < (relaxed == RV).sum()
    assert (squeezed == MYO).sum() == pytest.approx((relaxed == MYO).sum(), rel=0.35)


@few
@given(seed=seeds)
def test_cavities_narrow_towards_the_apex(seed: int) -> None:
    anatomy = draw(seed)
    areas = (labels_of(anatomy, "ED") == LV).sum(axis=(1, 2))[1:]
    # A pixel of slack on the outline: planes are sampled.
    assert (np.diff(areas) <= 0.02 * areas.max()).all()
    assert areas[-1] == 0


def test_nothing_is_labelled_above_the_valves_or_beyond_the_apex() -> None:
    anatomy = draw(3)
    axis = np.arange(-80.0, 80.0)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    for phase in PHASES:
        for depth in (anatomy.phases[phase].base - 0.1, anatomy.phases[phase].apex + 0.1):
            assert not anatomy.labels(x, y, depth, phase).any()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=seeds)
def test_every_scan_shows_all_classes_in_a_valid_volume(seed: int) -> None:
    phantom = Phantom(seed, SMALL)
    for phase in PHASES:
        scan = phantom.acquire(phase)
        assert scan.pixels.shape == scan.labels.shape == (6, 96, 96)
        assert (scan.pixels.dtype, scan.labels.dtype) == (np.int16, np.uint8)
        assert scan.pixels.min() >= 0
        assert set(np.unique(scan.labels)) == {0, *CLASSES}


def contrast(scan: Acquisition) -> tuple[float, float]:
    blood = scan.pixels[scan.labels == LV].mean()
    return blood / scan.pixels[scan.labels == MYO].mean(), blood / scan.pixels[scan.labels == RV].mean()


def test_blood_is_bright_and_myocardium_dark() -> None:
    for seed in range(4):
        to_muscle, to_right = contrast(Phantom(seed, SMALL).acquire("ED"))
        assert to_muscle > 1.5
        assert 0.5 < to_right < 2.0


def test_a_seed_is_a_seed_in_any_order() -> None:
    first, second = Phantom(5, SMALL), Phantom(5, SMALL)
    end_systole = first.acquire("ES")
    second.acquire("ED")
    again = second.acquire("ES")
    np.testing.assert_array_equal(end_systole.pixels, again.pixels)
    np.testing.assert_array_equal(end_systole.labels, again.labels)
    assert first.frames == second.frames
    assert (Phantom(6, SMALL).acquire("ES").pixels != end_systole.pixels).any()


def test_geometry_is_oblique_right_and_keeps_its_axes() -> None:
    for seed in range(20):
        scan = Phantom(seed, SMALL).acquire("ED") if seed == 0 else None
        affine = Phantom(seed, SMALL)._affine() if scan is None else scan.affine
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (2.0, 2.0, 13.0))
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
        assert (np.abs(directions).argmax(axis=0) == (0, 1, 2)).all()
        assert (np.diag(directions) < 0).all()
        assert np.abs(directions).max() < 1.0


def test_phantoms_differ_in_condition_contrast_and_size() -> None:
    phantoms = [Phantom([0, number], SMALL) for number in range(1, 33)]
    assert {phantom.anatomy.condition for phantom in phantoms} == {"normal", "dilated", "hypertrophic", "enlarged_rv"}
    assert np.std([phantom.anatomy.phases["ED"].cavity for phantom in phantoms]) > 1.0
    assert np.ptp([phantom.scanner.gain for phantom in phantoms]) > 300


def test_an_outline_of_a_circle_is_its_distance() -> None:
    x = np.linspace(-30.0, 30.0, 61)
    np.testing.assert_allclose(Outline((10.0, 10.0)).distance(x, np.zeros(61)), np.abs(x) - 10.0)
    assert np.isinf(Outline((0.0, 0.0)).distance(x, x)).all()

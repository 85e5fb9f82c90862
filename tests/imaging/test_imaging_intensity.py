"""Intensity windows and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rfss_core.errors import PixelError
from rfss_core.imaging import IntensityWindow, estimate_window, normalise
from rfss_core.settings import ImagingSettings

volumes = hnp.arrays(np.int16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(-2000, 2000))


@given(volumes)
def test_normalised_values_are_float32_from_0_to_1_and_keep_their_order(pixels):
    assume(pixels.min() < pixels.max())
    window = estimate_window(pixels, ImagingSettings())
    scaled = normalise(pixels, window)
    assert scaled.dtype == np.float32
    assert scaled.shape == pixels.shape
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    order = np.argsort(pixels, axis=None)
    assert (np.diff(scaled.ravel()[order]) >= 0).all()


@given(volumes, st.integers(2, 9), st.integers(-500, 500))
def test_a_linear_change_of_scanner_units_changes_nothing(pixels, slope, shift):
    assume(pixels.min() < pixels.max())
    settings = ImagingSettings()
    other = pixels.astype(np.float64) * slope + shift
    np.testing.assert_allclose(
        normalise(other, estimate_window(other, settings)),
        normalise(pixels, estimate_window(pixels, settings)),
        atol=1e-4,
    )


def test_outliers_do_not_set_the_window():
    pixels = np.random.default_rng(0).normal(100, 10, (10, 50, 50)).astype(np.float32)
    pixels[0, 0, 0] = 1e6
    window = estimate_window(pixels, ImagingSettings())
    assert 60 < window.low < window.high < 140


def test_sparse_foreground_still_has_a_window():
    pixels = np.zeros((10, 50, 50), np.uint8)
    pixels[5, 20:24, 20:24] = 200
    assert estimate_window(pixels, ImagingSettings()) == IntensityWindow(0, 200)


def test_ct_window():
    window = estimate_window(np.zeros((2, 2, 2)), ImagingSettings(window=(40, 400)))
    assert window == IntensityWindow(-160, 240)
    np.testing.assert_allclose(normalise(np.array([-1000, -160, 40, 240, 3000]), window), [0, 0, 0.5, 1, 1])


def test_large_volumes_are_sampled_evenly():
    # One bright column in ten: a sample that steps through columns in phase would miss it or see nothing else.
    pixels = np.zeros((50, 400, 400), np.uint8)
    pixels[..., ::10] = 200
    pixels[..., 5::10] = 100
    sampled = estimate_window(pixels, ImagingSettings(percentiles=(1, 95)))
    assert sampled == IntensityWindow(*np.percentile(pixels, (1, 95)))


def test_colours_share_one_window():
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 200, 100
    scaled = normalise(pixels, estimate_window(pixels, ImagingSettings(percentiles=(0, 100))))
    assert scaled[0, 0, 0].tolist() == [1.0, 0.5, 0.0]


def test_constant_volumes_have_no_window():
    with pytest.raises(PixelError) as caught:
        estimate_window(np.full((2, 3, 4), 5), ImagingSettings())
    assert caught.value.reason == "constant_image"

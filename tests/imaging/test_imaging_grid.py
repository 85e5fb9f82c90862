"""Source grids: exact inverses over every orientation, and anatomy where it belongs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Header
from scipy.spatial.transform import Rotation

from rfss_core.errors import GeometryError
from rfss_core.imaging import SourceGrid
from rfss_core.imaging.grid import affine_grid, raster_grid
from rfss_core.imaging.nifti import header_geometry

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def make_affine(order, signs, spacing, tilt=(0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0)):
    linear = np.zeros((3, 3))
    for axis in range(3):
        linear[order[axis], axis] = signs[axis] * spacing[axis]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ linear
    affine[:3, 3] = origin
    return affine


def make_grid(shape, affine, slice_axis="auto"):
    header = Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, 1)
    return affine_grid("test", "nifti", shape, affine, header_geometry(header), slice_axis)


sizes = st.integers(1, 5)
shapes = st.one_of(st.tuples(sizes, sizes), st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes, st.just(1)))
spacings = st.tuples(*[st.floats(0.1, 10.0)] * 3)
angles = st.tuples(*[st.floats(-25, 25)] * 3)
slice_axes = st.sampled_from(["auto", 0, 1, 2])


@given(shapes, st.sampled_from(ORIENTATIONS), spacings, angles, slice_axes, st.booleans())
def test_there_and_back_is_the_identity(shape, orientation, spacing, tilt, slice_axis, colour):
    grid = make_grid(shape, make_affine(*orientation, spacing, tilt), slice_axis)
    full = shape + ((3,) if colour else ())
    array = np.arange(np.prod(full), dtype=np.int32).reshape(full)
    canonical = grid.to_canonical(array)
    assert canonical.shape[:3] == grid.canonical_shape
    assert canonical.flags.c_contiguous
    np.testing.assert_array_equal(grid.to_source(canonical), array)
    np.testing.assert_array_equal(grid.to_canonical(grid.to_source(canonical)), canonical)


@given(shapes, st.sampled_from(ORIENTATIONS), spacings, angles, slice_axes)
def test_json_keeps_every_bit(shape, orientation, spacing, tilt, slice_axis):
    grid = make_grid(shape, make_affine(*orientation, spacing, tilt, (1 / 3, -np.pi, 1e-7)), slice_axis)
    assert SourceGrid.from_json(json.loads(json.dumps(grid.to_json(), allow_nan=False))) == grid


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_anatomy_lies_as_a_radiologist_sees_it(orientation, slice_axis):
    affine = make_affine(*orientation, (1.0, 1.0, 1.0), (12.0, -9.0, 14.0))
    shape = (4, 5, 6)
    grid = make_grid(shape, affine, slice_axis)
    indices = np.stack([*np.indices(shape), np.ones(shape)], axis=-1)
    world = [grid.to_canonical(indices @ affine[axis]) for axis in range(3)]
    left, posterior, superior = -world[0], -world[1], world[2]

    def grows(coordinate, axis):
        return bool((np.diff(coordinate, axis=axis) > 0).all())

    sliced_along = orientation[0][slice_axis]
    if sliced_along == 2:
        assert grows(superior, 0)
        assert grows(posterior, 1)
        assert grows(left, 2)
    elif sliced_along == 1:
        assert grows(posterior, 0)
        assert grows(-superior, 1)
        assert grows(left, 2)
    else:
        assert grows(left, 0)
        assert grows(-superior, 1)
        assert grows(posterior, 2)


@given(st.sampled_from(ORIENTATIONS), st.integers(0, 2), st.floats(1.05, 20))
def test_auto_slices_along_the_coarsest_source_axis(orientation, coarse, factor):
    spacing = [1.0, 1.0, 1.0]
    spacing[coarse] = factor
    grid = make_grid((4, 5, 6), make_affine(*orientation, spacing))
    assert grid.axes[0] == coarse
    assert grid.spacing == pytest.approx((factor, 1.0, 1.0))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.005, 1, 1), (3, 3, 1)])
def test_auto_without_a_coarsest_axis_takes_the_last(spacing):
    assert make_grid((4, 5, 6), make_affine((0, 1, 2), (1, 1, 1), spacing)).axes[0] == 2


def test_auto_slices_along_a_lone_singleton():
    grid = make_grid((1, 5, 6), make_affine((0, 1, 2), (1, 1, 1), (1, 1, 9)))
    assert grid.canonical_shape[0] == 1


def test_two_dimensional_files_are_one_slice_whatever_is_asked():
    assert make_grid((5, 6), make_affine((0, 1, 2), (1, 1, 1), (1, 1, 1)), slice_axis=0).canonical_shape[0] == 1


def test_missing_spacing_of_a_flat_axis_is_filled():
    affine = np.diag([2.0, 2.0, 0.0, 1.0])
    assert make_grid((5, 6), affine).spacing == (1.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "bad_spacing"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "bad_spacing"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "bad_geometry"),
    ],
)
def test_affines_that_place_nothing_are_refused(affine, reason):
    with pytest.raises(GeometryError) as caught:
        affine_grid("x.nii", "nifti", (4, 5, 6), affine, header_geometry(Nifti1Header()), "auto")
    assert caught.value.reason == reason
    assert "x.nii" in str(caught.value)


def test_arrays_of_other_shapes_are_refused():
    grid = raster_grid((4, 5), ".png")
    with pytest.raises(GeometryError):
        grid.to_canonical(np.zeros((5, 4)))
    with pytest.raises(GeometryError):
        grid.to_source(np.zeros((4, 5)))


def test_rasters_keep_rows_and_columns():
    array = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(raster_grid((4, 5), ".png").to_canonical(array)[0], array)

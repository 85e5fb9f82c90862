"""What counts as a slice."""

from __future__ import annotations

import numpy as np
import pytest

from rfss_core.embedding.slices import as_slice
from rfss_core.errors import GeometryError, PixelError


def test_eight_bit_pixels_are_scaled() -> None:
    assert as_slice(np.array([[0, 255]], dtype=np.uint8)).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.bool_])
def test_other_numbers_become_float32(dtype: type) -> None:
    image = np.array([[0, 1], [1, 0]], dtype=dtype)
    result = as_slice(image)
    assert result.dtype == np.float32
    assert np.array_equal(result, image.astype(np.float32))


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (4, 4, 1), (4, 4, 4), (0, 4), (1, 4, 4, 3), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match=r"query 7.*one slice"):
        as_slice(np.zeros(shape, dtype=np.float32), "query 7")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01, 900.0])
def test_unusable_pixels_are_refused(value: float) -> None:
    image = np.full((5, 5), 0.5, dtype=np.float32)
    image[2, 3] = value
    with pytest.raises(PixelError, match="query 7"):
        as_slice(image, "query 7")


@pytest.mark.parametrize("image", [np.zeros((4, 4), dtype=np.int16), np.zeros((4, 4), dtype=complex), [["a", "b"]]])
def test_unscaled_types_are_refused(image: object) -> None:
    with pytest.raises(PixelError, match="dtype"):
        as_slice(image)

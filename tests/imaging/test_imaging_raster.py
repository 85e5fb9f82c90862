"""PNG, JPEG and TIFF."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from rfss_core.errors import GeometryError, LabelError, PixelError, UnreadableImageError
from rfss_core.imaging import CaseSource, read_image, read_label, write_label
from rfss_core.imaging.raster import encode_raster, read_raster
from rfss_core.settings import ImagingSettings

GREY = np.random.default_rng(5).integers(0, 255, (7, 9), dtype=np.uint8)
COLOUR = np.random.default_rng(6).integers(0, 255, (7, 9, 3), dtype=np.uint8)
STACK = np.random.default_rng(7).integers(0, 60000, (4, 7, 9), dtype=np.uint16)


def case(image, label=None):
    return CaseSource("case", "case", "patient", "unknown", "raster", image, label)


def png(array, mode=None):
    image = Image.fromarray(array)
    return image if mode is None else image.convert(mode)


def test_grey_types_are_kept(tmp_path, settings):
    png(GREY).save(tmp_path / "a.png")
    Image.fromarray(STACK[0]).save(tmp_path / "b.png")
    png(GREY > 99).save(tmp_path / "c.png")
    png(GREY).convert("LA").save(tmp_path / "d.png")
    tifffile.imwrite(tmp_path / "e.tif", STACK[0].astype(np.float32))
    for name, expected in {
        "a.png": GREY,
        "b.png": STACK[0],
        "c.png": (GREY > 99).astype(np.uint8),
        "d.png": GREY,
        "e.tif": STACK[0].astype(np.float32),
    }.items():
        volume = read_image(case(tmp_path / name), settings)
        assert volume.pixels.dtype == expected.dtype, name
        np.testing.assert_array_equal(volume.pixels[0], expected, err_msg=name)
        assert volume.spacing == (1.0, 1.0, 1.0)
        assert volume.grid.suffix == ".png"


def test_colour_is_kept_and_grey_in_disguise_is_grey(tmp_path, settings):
    png(COLOUR).save(tmp_path / "rgb.png")
    png(np.dstack([COLOUR, GREY])).save(tmp_path / "rgba.png")
    png(np.dstack([GREY] * 3)).save(tmp_path / "disguise.png")
    tifffile.imwrite(tmp_path / "rgb.tif", COLOUR, photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(COLOUR, -1, 0), photometric="rgb", planarconfig="separate")
    for name in ("rgb.png", "rgba.png", "rgb.tif", "planar.tif"):
        np.testing.assert_array_equal(read_image(case(tmp_path / name), settings).pixels, COLOUR[None], err_msg=name)
    np.testing.assert_array_equal(read_image(case(tmp_path / "disguise.png"), settings).pixels, GREY[None])


def test_palettes_are_colours_in_images_and_classes_in_labels(tmp_path, settings):
    labels = (GREY % 3).astype(np.uint8)
    indexed = Image.fromarray(labels, mode="P")
    indexed.putpalette([0, 0, 0, 250, 10, 10, 10, 10, 250])
    indexed.save(tmp_path / "p.png")
    tifffile.imwrite(
        tmp_path / "p.tif",
        labels,
        photometric="palette",
        colormap=np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1)),
    )
    png(GREY).save(tmp_path / "i.png")
    grid = read_image(case(tmp_path / "i.png"), settings).grid
    assert read_image(case(tmp_path / "p.png"), settings).pixels.shape == (1, 7, 9, 3)
    for name in ("p.png", "p.tif"):
        np.testing.assert_array_equal(read_label(case(tmp_path / "i.png", tmp_path / name), grid, settings)[0], labels)


def test_jpeg(tmp_path, settings):
    png(GREY).save(tmp_path / "a.jpg", quality=95)
    assert read_image(case(tmp_path / "a.jpg"), settings).pixels.shape == (1, 7, 9)


@pytest.mark.parametrize("compression", [None, "zlib", "tiff_lzw"])
def test_pages_are_slices(tmp_path, settings, compression):
    path = tmp_path / "stack.tif"
    if compression == "tiff_lzw":
        first, *rest = [Image.fromarray(page) for page in STACK]
        first.save(path, save_all=True, append_images=rest, compression=compression)
    else:
        tifffile.imwrite(path, STACK, compression=compression, photometric="minisblack")
    volume = read_image(case(path), settings)
    np.testing.assert_array_equal(volume.pixels, STACK)
    assert volume.grid.suffix == ".tif"
    labels = (STACK % 3).astype(np.uint8)
    write_label(labels, volume.grid, tmp_path / "out.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), labels)
    np.testing.assert_array_equal(read_label(case(path, tmp_path / "out.tif"), volume.grid, settings), labels)
    before = (tmp_path / "out.tif").read_bytes()
    write_label(labels, volume.grid, tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == before


def test_imagej_stacks_are_slices_and_time_series_are_refused(tmp_path, settings):
    tifffile.imwrite(tmp_path / "z.tif", STACK, imagej=True, photometric="minisblack", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_image(case(tmp_path / "z.tif"), settings).pixels, STACK)
    tifffile.imwrite(
        tmp_path / "tz.tif", np.stack([STACK, STACK]), imagej=True, metadata={"axes": "TZYX"}, photometric="minisblack"
    )
    with pytest.raises(GeometryError) as caught:
        read_image(case(tmp_path / "tz.tif"), settings)
    assert caught.value.reason == "not_3d"


def test_pages_that_differ_are_refused(tmp_path, settings):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(STACK[0])
        writer.write(STACK[0][:3])
    with pytest.raises(GeometryError) as caught:
        read_image(case(tmp_path / "a.tif"), settings)
    assert caught.value.reason == "mixed_geometry"


def test_written_pngs_equal_their_labels(tmp_path, settings):
    png(COLOUR).save(tmp_path / "i.png")
    grid = read_image(case(tmp_path / "i.png"), settings).grid
    labels = (GREY % 3).astype(np.uint8)
    write_label(labels[None], grid, tmp_path / "o.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), labels)
    np.testing.assert_array_equal(read_label(case(tmp_path / "i.png", tmp_path / "o.png"), grid, settings)[0], labels)


def read_as_label(tmp_path, settings, array, name="l.png", **options):
    png(GREY).save(tmp_path / "i.png")
    png(array).save(tmp_path / name, **options)
    source = case(tmp_path / "i.png", tmp_path / name)
    return read_label(source, read_image(source, settings).grid, settings)[0]


def test_white_masks_are_class_one(tmp_path, settings):
    mask = GREY > 100
    np.testing.assert_array_equal(read_as_label(tmp_path, settings, mask.astype(np.uint8) * 255), mask)
    np.testing.assert_array_equal(read_as_label(tmp_path, settings, mask), mask)
    several = np.where(mask, 255, 7).astype(np.uint8)
    np.testing.assert_array_equal(read_as_label(tmp_path, settings, several), several)


def test_a_declared_class_255_is_no_mask_of_a_drawing_program(tmp_path, settings):
    mask = (GREY > 100).astype(np.uint8) * 255
    declared = settings.model_copy(update={"classes": {255: "tumour"}})
    np.testing.assert_array_equal(read_as_label(tmp_path, declared, mask), mask)


VALUES = strategies.sampled_from([0, 1, 7, 255])


@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6), elements=VALUES))
def test_what_was_written_is_read_as_it_was(tmp_path, settings, labels):
    suffix = ".png" if labels.ndim == 2 else ".tif"
    (tmp_path / f"i{suffix}").write_bytes(encode_raster(np.zeros_like(labels), suffix))
    grid = read_raster(tmp_path / f"i{suffix}", settings)[1]
    written = labels.reshape(grid.canonical_shape)
    write_label(written, grid, tmp_path / f"o{suffix}")
    source = case(tmp_path / f"i{suffix}", tmp_path / f"o{suffix}")
    keep = settings.model_copy(update={"empty_labels": "keep"})
    np.testing.assert_array_equal(read_label(source, grid, keep, exact=True), written)


def test_grey_labels_saved_as_colour_are_read_and_colours_refused(tmp_path, settings):
    labels = (GREY % 3).astype(np.uint8)
    np.testing.assert_array_equal(read_as_label(tmp_path, settings, np.dstack([labels] * 3)), labels)
    with pytest.raises(LabelError, match=r"l\.png.*convert"):
        read_as_label(tmp_path, settings, COLOUR)


def test_lossy_labels_are_refused(tmp_path, settings):
    with pytest.raises(LabelError, match=r"l\.jpg.*PNG"):
        read_as_label(tmp_path, settings, GREY, "l.jpg")


def test_labels_of_another_shape_are_refused(tmp_path, settings):
    with pytest.raises(GeometryError) as caught:
        read_as_label(tmp_path, settings, GREY[:-1])
    assert caught.value.reason == "label_shape_mismatch"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("keep", [0, 20, 0.6])
def test_damaged_files_are_refused(tmp_path, settings, name, keep):
    noise = np.random.default_rng(8).integers(0, 255, (99, 98), dtype=np.uint8)
    path = tmp_path / name
    png(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UnreadableImageError, match=name):
        read_image(case(path), settings)


def test_declared_sizes_are_checked_before_pixels(tmp_path, settings):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12_000, 10**6):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
        with pytest.raises(GeometryError, match=r"bomb\.png") as caught:
            read_image(case(tmp_path / "bomb.png"), ImagingSettings(max_voxels=10**8))
        assert caught.value.reason == "too_large"
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack")
    with pytest.raises(GeometryError) as caught:
        read_image(case(tmp_path / "a.tif"), ImagingSettings(max_voxels=STACK.size - 1))
    assert caught.value.reason == "too_large"


def test_white_is_zero_tiffs_are_inverted(tmp_path, settings):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(case(tmp_path / "a.tif"), settings).pixels[0], 255 - GREY)
    png(GREY).save(tmp_path / "i.png")
    grid = read_image(case(tmp_path / "i.png"), settings).grid
    with pytest.raises(LabelError, match="white is zero"):
        read_label(case(tmp_path / "i.png", tmp_path / "a.tif"), grid, settings)


def test_animations_and_constant_pictures_are_refused(tmp_path, settings):
    png(GREY).save(tmp_path / "a.png", save_all=True, append_images=[png(GREY.T.reshape(7, 9))])
    with pytest.raises(GeometryError) as caught:
        read_image(case(tmp_path / "a.png"), settings)
    assert caught.value.reason == "not_3d"
    png(np.zeros((5, 5), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(PixelError) as constant:
        read_image(case(tmp_path / "b.png"), settings)
    assert constant.value.reason == "constant_image"

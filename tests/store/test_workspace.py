"""Workspace: opening, cases whole or not at all, the manifest, OME-Zarr."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image, ImageLabel, Labels

from rfss_core.digest import digest_array
from rfss_core.errors import (
    CorruptStoreError,
    GeometryError,
    InputError,
    InputNotFoundError,
    StoreError,
    UnsafePathError,
)
from rfss_core.imaging import Quarantined, normalise
from rfss_core.store import Manifest, Workspace, plan_chunks

KINDS = [
    ("int16", (5, 12, 9), "nifti"),
    ("float32", (3, 7, 8), "nifti"),
    ("float64", (2, 4, 4), "nifti"),
    ("uint8", (1, 16, 11), "raster"),
    ("bool", (2, 5, 6), "nifti"),
    (">u2", (2, 5, 6), "nifti"),
    ("uint8", (1, 10, 6, 3), "raster"),
    ("uint16", (4, 10, 6, 3), "raster"),
]


@pytest.mark.parametrize(("dtype", "shape", "kind"), KINDS)
def test_cases_round_trip(root_url, make_sample, dtype, shape, kind) -> None:
    sample = make_sample(dtype=dtype, shape=shape, kind=kind)
    workspace = Workspace.open(root_url)
    row = workspace.write_case(*sample.arguments)
    stored = workspace.case(row.case_id)
    pixels = sample.volume.pixels
    assert stored.read_raw().dtype == pixels.dtype.newbyteorder("=")
    np.testing.assert_array_equal(stored.read_raw(), pixels)
    slices = stored.read_slices(1, 3)
    assert slices.dtype == np.float32
    np.testing.assert_array_equal(slices, normalise(pixels, sample.window)[1:3])
    np.testing.assert_array_equal(stored.read_labels(), sample.label)
    np.testing.assert_array_equal(stored.read_labels(0, 1), sample.label[:1])
    assert stored.read_labels().dtype == np.uint8
    assert stored.grid == sample.volume.grid
    assert stored.spacing == sample.volume.spacing
    assert stored.window == sample.window
    assert (stored.patient, stored.name, stored.modality) == (sample.case.patient, sample.case.name, "MR")
    assert stored.shape == shape[:3]
    assert stored.n_slices == row.n_slices == shape[0]
    assert stored.labelled
    assert (row.height, row.width) == shape[1:3]
    assert row.label_digest == digest_array(sample.label)
    assert row.pixel_digest == digest_array(np.moveaxis(pixels, -1, 0) if len(shape) == 4 else pixels)
    assert row.classes == [int(value) for value in np.unique(sample.label) if value]
    assert row.suffix == sample.volume.grid.suffix
    assert workspace.verify_case(row.case_id) == []


@pytest.mark.parametrize(("dtype", "shape", "kind"), KINDS)
def test_images_are_ome_zarr(tmp_path, make_sample, dtype, shape, kind) -> None:
    sample = make_sample(dtype=dtype, shape=shape, kind=kind)
    Workspace.open(tmp_path).write_case(*sample.arguments)
    folder = tmp_path / "images" / sample.case.case_id
    group = zarr.open_group(folder, mode="r")
    image = Image.from_zarr(group)
    axes = [axis.name for axis in image.ome_attributes.multiscales[0].axes]
    assert axes == (["c", "z", "y", "x"] if len(shape) == 4 else ["z", "y", "x"])
    scale = image.ome_attributes.multiscales[0].datasets[0].coordinateTransformations[0].scale
    assert tuple(scale[-3:]) == sample.volume.spacing
    assert Labels.from_zarr(group["labels"]).ome_attributes.labels == ["expert"]
    label = ImageLabel.from_zarr(group["labels/expert"])
    assert label.ome_attributes.image_label.source.image == "../../"
    attributes = dict(group.attrs["rfss"])
    np.testing.assert_array_equal(attributes["affine"], sample.volume.grid.affine)
    assert attributes["codes"] == ({"qform": 1, "sform": 2} if kind == "nifti" else None)
    # Inner chunk: one slice with all its channels. One shard holds the volume.
    assert group["0"].chunks == (*([3] if len(shape) == 4 else []), 1, *shape[1:3])
    assert group["0"].shards == group["0"].shape

    nodes = list(Reader(parse_url(folder))())
    found = {node.zarr.path.rstrip("/").rsplit("/", 1)[-1]: node.data[0].compute() for node in nodes if node.data}
    np.testing.assert_array_equal(found["expert"], sample.label)
    pixels = sample.volume.pixels
    np.testing.assert_array_equal(found[sample.case.case_id], np.moveaxis(pixels, -1, 0) if len(shape) == 4 else pixels)


def test_cases_without_a_label_map(root_url, make_sample) -> None:
    workspace = Workspace.open(root_url)
    row = workspace.write_case(*make_sample(labelled=False).arguments)
    assert (row.labelled, row.label_digest, row.classes) == (False, "", [])
    stored = workspace.case(row.case_id)
    assert not stored.labelled
    with pytest.raises(StoreError, match="labels/expert"):
        stored.read_labels()


def test_pixels_and_labels_must_fit(tmp_path, make_sample) -> None:
    workspace = Workspace.open(tmp_path)
    sample = make_sample()
    for label in (sample.label[:2], sample.label.astype(np.int64)):
        with pytest.raises(ValueError, match="label of case"):
            workspace.write_case(sample.case, sample.volume, sample.window, label, "x")
    assert workspace.ingest_records() == {}


def test_ingested_trusts_the_same_input_alone(root_url, make_sample) -> None:
    workspace = Workspace.open(root_url)
    sample = make_sample()
    assert workspace.ingested(sample.case, sample.source_digest, "s") is None
    workspace.write_case(*sample.arguments, "s")
    assert workspace.ingested(sample.case, sample.source_digest, "s") is not None
    assert workspace.ingested(sample.case, sample.source_digest, "t") is None
    assert workspace.ingested(sample.case, "other", "s") is None
    # The same case with other settings has the same place: the older record must not outlive its data.
    workspace.write_case(*sample.arguments, "t")
    assert workspace.ingested(sample.case, sample.source_digest, "s") is None
    workspace.remove_case(sample.case.case_id)
    assert workspace.ingested(sample.case, sample.source_digest, "t") is None
    with pytest.raises(StoreError, match="ingest it"):
        workspace.case(sample.case.case_id).read_slices()


def test_quarantined_cases_are_remembered_and_keep_nothing(root_url, make_sample) -> None:
    workspace = Workspace.open(root_url)
    sample = make_sample()
    workspace.write_case(*sample.arguments)
    error = GeometryError("shapes differ", reason="shape_mismatch")
    workspace.quarantine_case(sample.case, error, "changed")
    record = workspace.ingested(sample.case, "changed")
    assert record is not None
    assert (record.status, record.reason) == ("quarantined", "shape_mismatch")
    assert not workspace.files.exists(f"images/{sample.case.case_id}")
    other = Quarantined("notes", "unreadable", "no image", None)
    manifest = workspace.write_manifest([other, other])
    assert manifest.cases.empty
    assert manifest.quarantine.to_dict("records") == [
        {"name": "folder/case 0", "reason": "shape_mismatch", "message": "shapes differ", "patient": "p0"},
        {"name": "notes", "reason": "unreadable", "message": "no image", "patient": ""},
    ]


def test_manifest_is_the_same_whatever_the_order_and_history(tmp_path, make_sample) -> None:
    def ingest(folder: Path, order: list[int], again: list[int]) -> dict[str, bytes]:
        workspace = Workspace.open(folder)
        for number in (*order, *again):
            workspace.write_case(*make_sample(number, labelled=number % 2 == 0).arguments)
        workspace.write_manifest([Quarantined("b", "r", "m"), Quarantined("a", "r", "m")])
        return {path.name: path.read_bytes() for path in (folder / "manifest").iterdir()}

    one = ingest(tmp_path / "one", [0, 1, 2, 3], [])
    assert ingest(tmp_path / "two", [3, 1, 0, 2], [1, 3]) == one
    assert sorted(one) == ["cases.parquet", "quarantine.parquet", "slices.parquet"]


def test_manifest_round_trips_and_describes_slices(root_url, make_sample) -> None:
    workspace = Workspace.open(root_url)
    samples = [make_sample(number, labelled=number != 1) for number in range(3)]
    samples[0].label[2] = 0
    rows = [workspace.write_case(*sample.arguments) for sample in samples]
    with pytest.raises(StoreError, match="cases"):
        workspace.manifest()
    built = workspace.write_manifest()
    read = workspace.manifest()
    assert read.rows() == built.rows() == rows
    assert read.digest == built.digest
    assert read.slices.to_dict("records") == built.slices.to_dict("records")
    assert read.slices["slice_id"].tolist()[:6] == [f"case-000:{z:05d}" for z in range(5)] + ["case-001:00000"]
    empty = read.slices.iloc[2]
    assert (empty["classes"], empty["foreground"]) == ([], 0)
    assert read.slices.iloc[0]["classes"] == [1, 2, 3]
    for index, sample in ((0, samples[0]), (10, samples[2])):
        assert read.slices.iloc[index]["foreground"] == np.count_nonzero(sample.label[0])
    assert read.slices.iloc[5:10]["foreground"].sum() == 0
    assert [case for chunk in plan_chunks(read.cases) for case in chunk.case_ids] == [row.case_id for row in rows]
    some = workspace.write_manifest(case_ids=["case-002"])
    assert some.cases["case_id"].tolist() == ["case-002"]
    assert some.digest != built.digest


def test_manifest_of_nothing(tmp_path) -> None:
    workspace = Workspace.open(tmp_path)
    assert workspace.write_manifest().rows() == []
    assert workspace.manifest().rows() == []
    assert plan_chunks(workspace.manifest().cases) == []
    (tmp_path / "manifest/cases.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptStoreError, match="cases"):
        Manifest.read(workspace.files)


def test_flipped_bytes_in_a_case_are_found(tmp_path, make_sample) -> None:
    workspace = Workspace.open(tmp_path)
    sample = make_sample()
    workspace.write_case(*sample.arguments)
    paths = [path for path in (tmp_path / "images").rglob("*") if path.is_file()]
    assert len(paths) == 7
    for path in paths:
        sound = path.read_bytes()
        torn = bytearray(sound)
        torn[len(torn) // 2] ^= 0x04
        path.write_bytes(torn)
        assert len(workspace.verify_case(sample.case.case_id)) == 1, path
        path.write_bytes(sound)
    assert workspace.verify_case(sample.case.case_id) == []


def test_workspaces_are_made_opened_and_pickled(root_url, make_sample) -> None:
    with pytest.raises(InputNotFoundError, match="no RFSS workspace"):
        Workspace.open(root_url, create=False)
    workspace = Workspace.open(root_url)
    workspace.write_case(*make_sample().arguments)
    mark = workspace.files.read_bytes("rfss.json")
    Workspace.open(root_url, create=False)
    assert Workspace.open(root_url).files.read_bytes("rfss.json") == mark
    again = pickle.loads(pickle.dumps(workspace))
    stored = pickle.loads(pickle.dumps(again.case("case-000")))
    np.testing.assert_array_equal(stored.read_raw(), make_sample().volume.pixels)


def test_what_is_no_workspace_is_refused(tmp_path, root_url) -> None:
    workspace = Workspace.open(root_url)
    for content, error, words in (
        (b'{"format": "rfss-workspace", "version": 2}', InputError, "update RFSS"),
        (b'{"format": "other", "version": 1}', InputError, "not of an RFSS workspace"),
        (b"{", CorruptStoreError, "damaged"),
        (b"[]", CorruptStoreError, "damaged"),
    ):
        workspace.files.write_bytes("rfss.json", content)
        with pytest.raises(error, match=words):
            Workspace.open(root_url)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        Workspace.open(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        Workspace.open(foreign / "thesis.tex")
    half = tmp_path / "half"
    half.mkdir()
    (half / f"rfss.json.{'a' * 32}.partial").write_bytes(b"{")
    Workspace.open(half)


def test_case_ids_that_leave_the_workspace_are_refused(root_url) -> None:
    workspace = Workspace.open(root_url)
    for case_id in ("../x", "/etc", "a/b", ".."):
        with pytest.raises(UnsafePathError):
            workspace.case(case_id)
        with pytest.raises(UnsafePathError):
            workspace.remove_case(case_id)
        with pytest.raises(UnsafePathError):
            workspace.stage("embed", case_id)

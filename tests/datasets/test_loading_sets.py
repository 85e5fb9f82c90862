"""The loading handle on a data set's folder: what comes out is what went in, and damage is named."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import Published, publish_dataset
from torch.utils.data import DataLoader

from rfss_core.datasets import PseudoLabelSet, load, load_many
from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import CorruptStoreError, InputError, InputNotFoundError, UnsafePathError
from rfss_core.imaging import normalise


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish_dataset(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def dataset(published: Published) -> PseudoLabelSet:
    return load(published.folder)


@pytest.fixture
def copied(published: Published, tmp_path: Path) -> Path:
    """A copy of workspace and images that a test may damage; the path of the workspace."""
    shutil.copytree(published.workspace.parent, tmp_path / "all")
    return tmp_path / "all" / "work"


def test_the_handle_says_what_the_manifest_says(published: Published, dataset: PseudoLabelSet) -> None:
    manifest = published.manifest
    assert (dataset.name, dataset.digest, dataset.version) == ("hearts", manifest.digest, None)
    assert dataset.classes == {1: "shell", 3: "core"}
    assert dataset.ignore_value == 4
    accepted = dataset.cases()
    assert [case.decision for case in accepted] == ["accept", "accept"]
    every = dataset.cases(("accept", "review", "reject"))
    assert [case.id for case in every] == [entry.case for entry in manifest.entries]
    for case, entry in zip(every, manifest.entries, strict=True):
        assert (case.name, case.patient, case.predicted_dice, case.lower) == (
            entry.name, entry.patient, entry.predicted_dice, entry.lower,
        )  # fmt: skip
    # The case without a prediction weighs as the least confident one.
    assert [case.weight for case in every] == [0.95, 0.85, 0.65, 0.65]


def test_images_labels_and_uncertainty_are_those_that_were_labelled(
    published: Published, dataset: PseudoLabelSet
) -> None:
    for case in dataset.cases(("accept", "review", "reject")):
        assert case.stored is not None
        assert case.shape == published.labels[case.id].shape
        np.testing.assert_array_equal(case.label(), published.labels[case.id])
        np.testing.assert_array_equal(case.raw(), published.pixels[case.id])
        np.testing.assert_array_equal(case.image(1, 3), normalise(published.pixels[case.id], case.stored.window)[1:3])
        np.testing.assert_array_equal(case.uncertainty(), published.uncertainties[case.id])
        sure = published.uncertainties[case.id] < np.ceil(255 * 0.6)
        np.testing.assert_array_equal(case.label(0.6), np.where(sure, published.labels[case.id], 4))
        assert case.spacing == case.stored.spacing


@pytest.mark.parametrize("classes", [{255: "tumour"}, {7: "fluid", 255: "tumour"}, {1: "disc"}])
def test_pictures_keep_their_classes(tmp_path: Path, classes: dict[int, str]) -> None:
    published = publish_dataset(tmp_path / "site", classes=classes, suffix=".png")
    shutil.copytree(published.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("origin.json"))
    for address in (published.folder, tmp_path / "copy"):
        for case in load(address).cases(("accept", "review", "reject")):
            np.testing.assert_array_equal(case.label(), published.labels[case.id])


def test_a_workspace_means_its_latest_data_set(published: Published) -> None:
    assert load(published.workspace).digest == published.manifest.digest
    assert load(str(published.workspace), verify="none").digest == published.manifest.digest


def test_a_copy_without_its_workspace_reads_labels_alone_and_images_from_their_source(
    published: Published, tmp_path: Path
) -> None:
    shutil.copytree(published.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("origin.json"))
    alone = load(tmp_path / "copy")
    for case in alone.cases():
        np.testing.assert_array_equal(case.label(), published.labels[case.id])
        assert case.uncertainty() is None
        with pytest.raises(InputNotFoundError, match="images="):
            case.image()
        with pytest.raises(InputError, match="no uncertainty is stored"):
            case.label(0.5)
    with_images = load(tmp_path / "copy", images=published.images)
    for case in with_images.cases():
        np.testing.assert_array_equal(case.raw(), published.pixels[case.id])
        np.testing.assert_array_equal(case.label(), published.labels[case.id])
        assert 0 <= case.image().min() < case.image().max() <= 1
    item = with_images.torch_dataset()[1]
    assert item["image"].shape[1:] == item["label"].shape


@pytest.mark.parametrize("kind", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_slices_as_the_main_process_does(published: Published, dataset: PseudoLabelSet, kind: str) -> None:
    slices = dataset.torch_dataset(ignore=0.9)
    assert len(slices) == len(slices.weights) == len(slices.patients) == sum(c.n_slices for c in dataset.cases())
    here = [slices[index] for index in range(len(slices))]
    # Here first, so that a fork inherits what is open.
    loader = DataLoader(slices, batch_size=None, num_workers=2, multiprocessing_context=kind)
    count = 0
    for mine, theirs in zip(here, loader, strict=True):
        assert (mine["case"], mine["slice"], mine["patient"]) == (theirs["case"], theirs["slice"], theirs["patient"])
        assert torch.equal(mine["image"], theirs["image"])
        assert torch.equal(mine["label"], theirs["label"])
        assert torch.equal(mine["weight"], theirs["weight"])
        count += 1
    assert count == len(slices)
    assert torch.equal(pickle.loads(pickle.dumps(slices))[3]["label"], here[3]["label"])
    first = here[2]
    assert first["image"].shape == (1, *first["label"].shape)
    assert (first["image"].dtype, first["label"].dtype, first["weight"].dtype) == (
        torch.float32, torch.int64, torch.float32,
    )  # fmt: skip
    assert (first["label"] == slices.ignore_index).any()
    masked = published.uncertainties[first["case"]][2] >= np.ceil(255 * 0.9)
    np.testing.assert_array_equal(first["label"].numpy() == 4, masked)


def test_volumes_and_slices_with_foreground(published: Published, dataset: PseudoLabelSet) -> None:
    volumes = dataset.torch_dataset("volumes", ("accept", "review"), transform=lambda item: item["label"].shape)
    assert [volumes[index] for index in range(len(volumes))] == [
        published.labels[case.id].shape for case in dataset.cases(("accept", "review"))
    ]
    labelled = dataset.torch_dataset(labelled_only=True)
    # The first slice of each case is all background.
    assert len(labelled) == sum(case.n_slices - 1 for case in dataset.cases())
    assert all(labelled[index]["label"].any() for index in range(len(labelled)))


def test_coloured_rasters_load_too(tmp_path: Path) -> None:
    published = publish_dataset(tmp_path, suffix=".png")
    for found in (load(published.folder), load(published.folder, images=published.images)):
        for case in found.cases():
            np.testing.assert_array_equal(case.label(), published.labels[case.id])
            np.testing.assert_array_equal(case.raw(), published.pixels[case.id])
            assert case.spacing == (1, 1, 1)
        slices, volumes = found.torch_dataset(), found.torch_dataset("volumes")
        assert (slices[1]["image"].shape, volumes[1]["image"].shape) == ((3, 22, 24), (3, 1, 22, 24))
        assert found.dask_array("image", pad=True).shape == (2, 22, 24, 3)
    alone = load(published.folder, verify="none")
    alone.origin.__dict__["workspace"] = None
    np.testing.assert_array_equal(alone.cases()[0].label(), published.labels[alone.cases()[0].id])


def test_names_of_a_manifest_lead_out_of_no_folder(tmp_path: Path) -> None:
    published = publish_dataset(tmp_path, decisions=("accept",))
    manifest = replace(published.manifest, entries=(replace(published.manifest.entries[0], name="../../escape"),))
    evil = PseudoLabelSet(manifest)
    evil.origin.__dict__["sources"] = {}
    with pytest.raises(UnsafePathError):
        evil.monai_datalist(out=tmp_path / "out", ignore=0.5)


def test_label_maps_stay_within_the_cache(dataset: PseudoLabelSet) -> None:
    slices = dataset.torch_dataset(cache_mb=0)
    for index in (0, len(slices) - 1, 0):
        slices[index]
        assert len(slices._kept) == 1
    assert len(pickle.loads(pickle.dumps(slices))._kept) == 0


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_monai_gets_files(published: Published, dataset: PseudoLabelSet, tmp_path: Path) -> None:
    from monai.transforms import LoadImaged

    listed = dataset.monai_datalist()
    assert [item["weight"] for item in listed] == [0.95, 0.85]
    loaded = LoadImaged(keys=("image", "label"))(listed[0])
    assert loaded["image"].shape == loaded["label"].shape
    with pytest.raises(InputError, match="out="):
        dataset.monai_datalist(ignore=0.5)
    [first, _] = dataset.monai_datalist(ignore=0.5, out=tmp_path)
    case = dataset.cases()[0]
    again = LoadImaged(keys="label")(first)["label"]
    np.testing.assert_array_equal(case.grid.to_canonical(np.asarray(again, np.uint8)), case.label(0.5))


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_monai_gets_images_that_only_the_workspace_holds(copied: Path, published: Published, tmp_path: Path) -> None:
    from monai.transforms import LoadImaged

    shutil.rmtree(copied.parent / "images")
    (copied / "datasets" / "first" / "origin.json").unlink()
    moved = load(copied)
    with pytest.raises(InputError, match="lies in the workspace alone"):
        moved.monai_datalist()
    [first, _] = moved.monai_datalist(out=tmp_path / "out")
    case = moved.cases()[0]
    image = LoadImaged(keys="image")(first)["image"]
    np.testing.assert_array_equal(case.grid.to_canonical(np.asarray(image)), published.pixels[case.id])


def test_dask_gets_slices(published: Published, dataset: PseudoLabelSet) -> None:
    with pytest.raises(InputError, match="differ in size"):
        dataset.dask_array("label")
    labels = dataset.dask_array("label", pad=True)
    cases = dataset.cases()
    assert labels.shape[0] == sum(case.n_slices for case in cases)
    assert labels.chunks[0] == tuple(case.n_slices for case in cases)
    first = published.labels[cases[0].id]
    np.testing.assert_array_equal(labels[: len(first), : first.shape[1], : first.shape[2]].compute(), first)
    images = dataset.dask_array("image", pad=True)
    assert (images.dtype, images.shape) == (np.float32, labels.shape)


def test_changed_and_vanished_files_are_named(copied: Path) -> None:
    entries = load(copied).manifest.entries
    folder = copied / "datasets" / "first"
    kept = load(copied).cases()[0]
    (folder / entries[0].label_path).write_bytes(b"changed")
    (folder / entries[1].label_path).unlink()
    with pytest.raises(CorruptStoreError, match=r"missing: ward 0/sub-01.*changed: ward 0/sub-00"):
        load(copied)
    # Also in the middle of a training.
    with pytest.raises(CorruptStoreError, match="ward 0/sub-00"):
        kept.label()


def test_changed_images_and_uncertainties_are_named(copied: Path) -> None:
    entries = load(copied).manifest.entries
    image = next(path for path in (copied / "images" / entries[0].case / "0" / "c").rglob("*") if path.is_file())
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    shutil.rmtree(copied / "images" / entries[1].case)
    shard = next((copied / "stages" / "segment").rglob(f"{entries[2].case}/uncertainty/c*"))
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    with pytest.raises(CorruptStoreError) as error:
        load(copied)
    for wanted in (f"images/{entries[0].case}/0", f"images/{entries[1].case}", f"{entries[2].case}/uncertainty"):
        assert wanted in str(error.value)
    assert len(load(copied, verify="labels").cases()) == 2


def test_an_image_that_was_ingested_anew_is_not_taken_for_the_old(copied: Path) -> None:
    from cohorts import save

    from rfss_core.imaging import discover, estimate_window, read_image, source_digest
    from rfss_core.settings import ImagingSettings
    from rfss_core.store import Workspace

    dataset, images = load(copied), copied.parent / "images"
    entry = dataset.manifest.entries[0]
    save(images / f"{entry.name}.nii.gz", np.random.default_rng(9).integers(0, 9, (20, 24, 4)).astype(np.int16))
    source = next(case for case in discover(str(images), None, ImagingSettings()).cases if case.case_id == entry.case)
    volume = read_image(source, ImagingSettings())
    window = estimate_window(volume.pixels, ImagingSettings())
    Workspace.open(copied).write_case(source, volume, window, None, source_digest(source))
    with pytest.raises(CorruptStoreError, match=f"images/{entry.case}"):
        load(copied)
    with pytest.raises(CorruptStoreError, match="not the one that was labelled"):
        load(copied, verify="labels").cases()[0].image()
    with pytest.raises(CorruptStoreError, match=entry.name):
        load(copied, images=images)


def test_a_set_without_an_accepted_case_says_so(tmp_path: Path) -> None:
    poor = load(publish_dataset(tmp_path, decisions=("review", "reject")).folder)
    for ask in (poor.cases, poor.torch_dataset, poor.monai_datalist, poor.dask_array):
        with pytest.raises(InputError, match=r"no case decided accept .*review 1, reject 1"):
            ask()  # type: ignore[operator]


def test_sets_whose_classes_differ_are_not_loaded_together(published: Published, tmp_path: Path) -> None:
    other = publish_dataset(tmp_path, "other", ("accept",), {1: "core", 3: "shell"})
    with pytest.raises(InputError, match=r"'hearts' and 'other' do not have the same classes .*shell.*core"):
        load_many([published.folder, other.folder])
    assert [item.name for item in load_many([published.folder, published.workspace], verify="none")] == ["hearts"] * 2
    with pytest.raises(InputError, match="no data set was named"):
        load_many([])


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"manifest\.json is missing"):
        load(tmp_path)
    for text in ("", "a b@c", "hearts@", "hearts/x", "hearts@1x"):
        with pytest.raises(InputError, match="names no data set"):
            load(text)


@pytest.mark.parametrize("text", ["hearts@champion", "hearts/3", "hearts", "a.b-c_d@x-1"])
def test_references_read_as_they_are_written(text: str) -> None:
    reference = DatasetReference.parse(text)
    assert str(reference) == text
    assert replace(reference) == reference


def test_levels_of_ignore_are_checked(dataset: PseudoLabelSet) -> None:
    for level in (0.0, 1.1, -1):
        with pytest.raises(InputError, match="above 0"):
            dataset.torch_dataset(ignore=level)
    with pytest.raises(InputError, match="no kind of item"):
        dataset.torch_dataset("voxels")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no array"):
        dataset.dask_array("depth")  # type: ignore[arg-type]

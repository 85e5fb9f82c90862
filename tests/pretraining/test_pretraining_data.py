"""Hold-outs, packs, synthetic and packed tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfss_core.errors import InputNotFoundError
from rfss_core.pretraining.holdout import HELD_OUT_PATIENTS, assign_parts
from rfss_core.pretraining.pack import Pack, read_packs, write_packs
from rfss_core.pretraining.source import ACDC, SOURCES, Slices, parts_of
from rfss_core.pretraining.synthesis import paint_intensities, region_labels, shape_labels
from rfss_core.pretraining.task import LEAST_AREA, GroupDataset, LabelledGroupDataset, Mixture


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text("abc0123", min_size=1, max_size=6), min_size=5, max_size=60), st.randoms())
def test_parts_depend_on_names_alone_and_cover_everyone(patients, random):
    ordered = sorted(patients)
    shuffled = ordered * 2
    random.shuffle(shuffled)
    parts = assign_parts("some-set", shuffled)
    assert parts == assign_parts("some-set", ordered)
    assert set(parts) == patients
    held_out = sum(part == "test" for part in parts.values())
    assert held_out >= len(patients) / 5
    assert any(part == "train" for part in parts.values())


def test_another_set_has_other_held_out_patients():
    patients = [f"patient{i}" for i in range(50)]
    assert assign_parts("a", patients) != assign_parts("b", patients)


def test_acdc_is_no_training_set():
    assert ACDC not in SOURCES
    assert not any("acdc" in source.path.lower() for source in SOURCES)


def test_held_out_counts_and_shared_patients(shared_data: Path):
    hippocampus = parts_of(shared_data, "hippocampus")
    assert sum(part == "test" for part in hippocampus.values()) == HELD_OUT_PATIENTS["hippocampus"] == 40
    # Both copies of HC18 show the same women under the same names: they share one split.
    heads = parts_of(shared_data, "fetal-head")
    with np.load(shared_data / "pack" / "fetal-head.npz", allow_pickle=False) as archive:
        in_pack = {str(case) for case in archive["case"]}
    in_folder = {file.stem for file in (shared_data / "fetal-head" / "labels").iterdir()}
    assert set(heads) == in_pack | in_folder
    assert in_pack & in_folder


def write_raster_sets(root: Path) -> None:
    generator = np.random.default_rng(0)
    for source in SOURCES:
        path = root / source.path
        if path.suffix == ".npz":
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = np.zeros((12, 64, 64), np.uint8)
            labels[:, 20:40, 10:30] = 1
            images = generator.integers(0, 255, labels.shape).astype(np.uint8)
            cases = np.array([f"{source.split_set}{i // 2}" for i in range(12)])
            np.savez(path, image=images, label=labels, case=cases)
        else:
            from PIL import Image

            for name in ("images", "labels"):
                (path / name).mkdir(parents=True)
            for patient in range(60 if source.name == "hippocampus" else 10):
                image = generator.integers(0, 255, (40, 50)).astype(np.uint8)
                Image.fromarray(image).save(path / "images" / f"{source.split_set}{patient}.png")
                label = np.zeros((40, 50), np.uint8)
                label[10:30, 10:30] = 1
                Image.fromarray(label).save(path / "labels" / f"{source.split_set}{patient}.png")


def test_packs_hold_no_test_patient_and_parts_are_disjoint(tmp_path: Path):
    write_raster_sets(tmp_path / "data")
    counts = write_packs(tmp_path / "data", tmp_path / "packs")
    assert set(counts["train"]) == {source.name for source in SOURCES}
    by_set: dict[str, dict[str, set[str]]] = {}
    for part in ("train", "validation"):
        for pack in read_packs(tmp_path / "packs", part):
            split_set = next(source.split_set for source in SOURCES if source.name == pack.name)
            by_set.setdefault(split_set, {}).setdefault(part, set()).update(map(str, pack.slices.patients))
    for split_set, parts in by_set.items():
        expected = parts_of(tmp_path / "data", split_set)
        assert parts["train"].isdisjoint(parts.get("validation", set()))
        for part, patients in parts.items():
            assert all(expected[patient] == part for patient in patients)


def test_missing_packs_name_the_next_step(tmp_path: Path):
    with pytest.raises(InputNotFoundError, match="pretraining pack"):
        read_packs(tmp_path, "train")


def make_pack() -> Pack:
    generator = np.random.default_rng(1)
    count, size = 40, 64
    labels = np.zeros((count, size, size), np.uint8)
    for i in range(count - 8):
        row, column = generator.integers(8, 36, 2)
        labels[i, row : row + 16, column : column + 16] = 1
        labels[i, row + 4 : row + 10, column + 4 : column + 10] = 2
    images = (generator.normal(60, 10, labels.shape) + 60 * labels).clip(0, 255).astype(np.uint8)
    names = np.array([f"p{i // 4}" for i in range(count)])
    positions = (np.arange(count) % 4 / 4).astype(np.float32)
    slices = Slices(images, labels, names, names, positions, np.zeros(count, np.uint8))
    return Pack("hippocampus", slices, (labels[:10] + 1).astype(np.uint8))


@pytest.mark.parametrize("kind", range(5))
def test_every_kind_of_task_is_reproducible_and_teaches(kind):
    shares = [0.0] * 5
    shares[kind] = 1.0
    packs = [make_pack()]
    first = GroupDataset(packs, 64, seed=3, mixture=Mixture(*shares))
    again = GroupDataset(packs, 64, seed=3, mixture=Mixture(*shares))
    other = GroupDataset(packs, 64, seed=4, mixture=Mixture(*shares))
    for index in (0, 5):
        group, same = first[index], again[index]
        assert torch.equal(group["images"], same["images"])
        assert torch.equal(group["masks"], same["masks"])
        assert not torch.equal(group["images"], other[index]["images"])
        assert group["images"].shape == group["masks"].shape == (8, 64, 64)
        assert torch.isfinite(group["images"]).all()
        assert 0 <= float(group["images"].min()) <= float(group["images"].max()) <= 1
        assert 0 <= float(group["masks"].min()) <= float(group["masks"].max()) <= 1
        assert ((group["masks"] > 0.02) & (group["masks"] < 0.98)).float().mean() < 0.1
        assert int((group["masks"].mean((1, 2)) > LEAST_AREA).sum()) >= 2


def test_expert_groups_include_class_absent_members():
    data = GroupDataset([make_pack()], 64, seed=0, mixture=Mixture(1, 0, 0, 0, 0))
    absent = [int((data[i]["masks"].flatten(1).amax(1) == 0).sum()) for i in range(30)]
    assert any(absent)
    assert not all(absent)


def test_synthetic_labels_vary_within_a_group_and_intensities_follow_labels():
    generator = torch.Generator().manual_seed(0)
    for draw in (region_labels, shape_labels):
        labels = draw(generator, 6, 64)
        assert labels.shape == (6, 64, 64)
        assert labels.min() >= 0
        assert not torch.equal(labels[0], labels[1])
        # The same task: images of a group agree more than chance about where classes are.
        assert float((labels[0] == labels[1]).float().mean()) > 0.3
        images = paint_intensities(generator, labels)
        assert images.shape == labels.shape
        assert torch.isfinite(images).all()


def test_labelled_groups_keep_whole_label_maps():
    data = LabelledGroupDataset([make_pack()], 56, 6, seed=0, mixture=Mixture(1, 0, 0, 0, 0))
    group = data[0]
    assert group["labels"].shape == (6, 56, 56)
    assert set(group["labels"].unique().tolist()) <= {0, 1, 2}
    assert group["source"].item() == 0
    synthetic = LabelledGroupDataset([], 56, 6, seed=0)
    assert synthetic[0]["source"].item() != synthetic[1]["source"].item()

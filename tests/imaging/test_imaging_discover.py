"""Discovery: what pairs, what is set aside, and that nothing is lost."""

from __future__ import annotations

import os
import pickle
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rfss_core.errors import InputError, InputNotFoundError
from rfss_core.imaging import discover, read_image, read_label, source_digest, write_label
from rfss_core.imaging.names import case_id, find_patient
from rfss_core.settings import ImagingSettings

PICTURE = np.arange(30, dtype=np.uint8).reshape(5, 6)


@pytest.fixture
def tree(tmp_path):
    """Make files under ``images`` and ``labels``; names tell the type, PNGs are real."""

    def make(images=(), labels=()):
        for folder, names in (("images", images), ("labels", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names:
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if name.endswith(".png"):
                    Image.fromarray(PICTURE % (3 if folder == "labels" else 99)).save(path)
                else:
                    path.write_bytes(b"placeholder: discovery reads no pixels")
        return str(tmp_path / "images"), str(tmp_path / "labels")

    return make


def reasons(found):
    return {entry.name: entry.reason for entry in found.quarantined}


def labelled(found):
    return {case.name: case.label.name for case in found.cases if case.label}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.nii.gz", "a.nii.gz"),
        ("a.nii", "a.nii.gz"),
        ("deep/er/a.nii.gz", "deep/er/a.nii.gz"),
        ("a.png", "a_mask.png"),
        ("a.JPG", "a_gt.PNG"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("a.nii.gz", "a_label.nii.gz"),
        ("sub-01_T1w.nii.gz", "sub-01_T1w_dseg.nii.gz"),
        ("CASE_0000.nii.gz", "CASE.nii.gz"),
        ("a_image.nii.gz", "a_label.nii.gz"),
    ],
)
def test_names_pair(tree, settings, image, label):
    found = discover(*tree([image, "other.nii.gz"], [label]), settings)
    assert list(labelled(found).values()) == [os.path.basename(label)]  # noqa: PTH119
    assert len(found.cases) == 2
    assert not found.quarantined


def test_numbered_names_do_not_share_labels(tree, settings):
    found = discover(*tree(["scan_0001.png", "scan_0002.png", "scan.png"], ["scan.png", "scan_0001.png"]), settings)
    assert labelled(found) == {"scan": "scan.png", "scan_0001": "scan_0001.png"}


def test_channels_of_a_case_are_one_patient(tree, settings):
    names = ["A_0000.nii.gz", "A_0001.nii.gz", "B_0000.nii.gz", "B_0001.nii.gz"]
    found = discover(*tree(names, ["A.nii.gz"]), settings)
    assert {case.name: case.patient for case in found.cases} == {
        "A_0000": "A",
        "A_0001": "A",
        "B_0000": "B",
        "B_0001": "B",
    }
    assert set(labelled(found)) == {"A_0000", "A_0001"}


def test_composed_and_decomposed_unicode_pair(tree, settings):
    name = "Übung größe.png"
    found = discover(*tree([unicodedata.normalize("NFD", name)], [unicodedata.normalize("NFC", name)]), settings)
    assert len(labelled(found)) == 1


@pytest.mark.parametrize(
    "name", ["a..b.png", "..a.b/c d.png", "with space.png", "größe 患者.png", "a'\"$(x);b.png", "-x.png"]
)
def test_odd_names_work_to_the_end(tree, settings, name, tmp_path):
    if name.startswith("."):
        name = "x/" + name[2:]
    found = discover(*tree([name], [name]), settings)
    assert not found.quarantined
    (case,) = found.cases
    assert case.name == name.removesuffix(".png")
    volume = read_image(case, settings)
    out = tmp_path / "out" / f"{case.name}{volume.grid.suffix}"
    write_label(read_label(case, volume.grid, settings), volume.grid, out)
    assert out.is_file()
    assert pickle.loads(pickle.dumps(case)) == case


def test_links_that_leave_the_folder_are_refused(tree, settings, tmp_path):
    folders = tree(["a.png", "b.png"], ["a.png"])
    (tmp_path / "outside.png").write_bytes((tmp_path / "images/a.png").read_bytes())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.png").write_bytes((tmp_path / "images/a.png").read_bytes())
    (tmp_path / "images/out.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "images/up.png").symlink_to("../outside.png")
    (tmp_path / "images/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/dead.png").symlink_to("nowhere.png")
    (tmp_path / "images/inside.png").symlink_to("a.png")
    (tmp_path / "images/loop").symlink_to(".")
    (tmp_path / "labels/b.png").symlink_to(tmp_path / "outside.png")
    found = discover(*folders, settings)
    assert {case.name for case in found.cases} == {"a", "inside"}
    assert reasons(found) == {
        "out.png": "unsafe_path",
        "up.png": "unsafe_path",
        "folder": "unsafe_path",
        "dead.png": "unreadable",
        "b": "unsafe_path",
        "labels:b.png": "unsafe_path",
    }
    assert found.ignored == ["loop/"]


def test_a_linked_root_is_fine(tree, settings, tmp_path):
    _, labels = tree(["a.png"], ["a.png"])
    (tmp_path / "link").symlink_to("images")
    assert labelled(discover(str(tmp_path / "link"), labels, settings))


def test_every_file_is_accounted_for(tree, settings, tmp_path):
    images = ["a.png", "b.nii.gz", "x/c.png", ".DS_Store", "._a.png", "notes.txt", ".cache/q.png", "x/readme"]
    labels = ["a.png", "lost.png", "notes.md"]
    found = discover(*tree(images, labels), settings)
    os.mkfifo(tmp_path / "images/pipe.png")
    found = discover(str(tmp_path / "images"), str(tmp_path / "labels"), settings)
    assert {case.name for case in found.cases} == {"a", "b", "x/c"}
    assert reasons(found) == {"labels:lost.png": "label_without_image"}
    assert set(found.ignored) == {
        ".DS_Store", "._a.png", "notes.txt", ".cache/", "x/readme", "pipe.png", "labels:notes.md",
    }  # fmt: skip


def test_duplicates_are_set_aside(tree, settings):
    found = discover(*tree(["a.png", "a.nii.gz", "b.png", "c.png"], ["a.png", "b.png", "b_seg.png", "c.png"]), settings)
    assert [case.name for case in found.cases] == ["c"]
    assert [entry.reason for entry in found.quarantined].count("duplicate_name") == 2
    assert reasons(found)["b"] == "duplicate_label"
    assert "a.nii.gz and a.png" in found.quarantined[0].message


def test_label_without_image_names_the_file(tree, settings):
    found = discover(*tree(["a.png"], ["a.png", "b.png"]), settings)
    assert "b.png" in found.quarantined[0].message
    assert [case.name for case in found.cases] == ["a"]


def test_missing_folders_and_missing_files(tree, settings, tmp_path):
    images, labels = tree(["a.png"], ["a.png"])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    for arguments in [(images + "x", labels), (images, labels + "x"), (str(empty), labels), (images, str(empty))]:
        with pytest.raises(InputNotFoundError) as caught:
            discover(*arguments, settings)
        assert any(argument in str(caught.value) for argument in arguments)
    with pytest.raises(InputNotFoundError, match=r"\*\.tif"):
        discover(f"{images}/*.tif", labels, settings)


def test_labels_that_all_miss_end_the_run(tree, settings):
    with pytest.raises(InputError, match="none of the 1 labels"):
        discover(*tree(["a.png"], ["b.png"]), settings)


def test_globs(tree, settings):
    images, labels = tree(["a.png", "b.png", "x/c.png", "a.nii.gz"], ["a.png"])
    assert [case.name for case in discover(f"{images}/*.png", labels, settings).cases] == ["a", "b"]
    assert [case.name for case in discover(f"{images}/**/*.png", labels, settings).cases] == ["a", "b", "x/c"]
    assert [case.name for case in discover(f"{images}/a.png", labels, settings).cases] == ["a"]


def test_relative_paths_become_absolute(tree, settings, tmp_path, monkeypatch):
    tree(["a.png"], ["a.png"])
    monkeypatch.chdir(tmp_path)
    for images in ("images", "images/*.png", "./images/a.png"):
        (case,) = discover(images, "labels", settings).cases
        assert case.name == "a"
        assert case.image.is_absolute()
        assert case.label.is_absolute()
    monkeypatch.chdir(tmp_path / "images")
    assert [case.name for case in discover("*.png", "../labels", settings).cases] == ["a"]


def test_labels_inside_the_images_folder(tree, settings, tmp_path):
    images, _ = tree(["a.png", "b.png", "labels/a.png"])
    found = discover(images, f"{images}/labels", settings)
    assert [case.name for case in found.cases] == ["a", "b"]
    same, _ = tree(["a_seg.png"])
    (tmp_path / "images/labels/a.png").unlink()
    found = discover(same, same, settings)
    assert labelled(found) == {"a": "a_seg.png"}
    assert [case.name for case in found.cases] == ["a", "b"]
    assert labelled(discover(f"{images}/?.png", f"{images}/*_seg.png", settings)) == {"a": "a_seg.png"}


@pytest.mark.parametrize(
    ("name", "pattern", "patient"),
    [
        ("sub-01/anat/sub-01_ses-2_T1w", None, "sub-01"),
        ("patient007_frame12", None, "patient007"),
        ("hippocampus_001", None, "hippocampus_001"),
        ("x/y", None, "x/y"),
        ("AB12-3", r"([A-Z]+)\d", "AB"),
        ("AB12-3", r"\d+", "12"),
        ("AB12/scan", r"^(\w+)/", "AB12"),
        ("zzz", r"\d+", "zzz"),
    ],
)
def test_patients(name, pattern, patient):
    assert find_patient(name, pattern) == patient


def test_the_pattern_reaches_the_cases(tree):
    found = discover(*tree(["p1-a.png", "p1-b.png"], ["p1-a.png"]), ImagingSettings(patient_pattern=r"^(p\d)-"))
    assert {case.patient for case in found.cases} == {"p1"}


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=150)


@given(names)
def test_case_ids_are_safe_and_stable(name):
    made = case_id(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,149}", made)
    assert ".." not in made
    assert case_id(name) == made


@given(names, names)
def test_case_ids_are_unique(one, other):
    assert (case_id(one) == case_id(other)) == (one == other)


def test_digest_counts_image_and_label(tree, settings, tmp_path):
    folders = tree(["a.png"], ["a.png"])
    (case,) = discover(*folders, settings).cases
    first = source_digest(case)
    Image.fromarray(PICTURE % 2).save(tmp_path / "labels/a.png")
    second = source_digest(case)
    Image.fromarray(PICTURE + 1).save(tmp_path / "images/a.png")
    assert len({first, second, source_digest(case)}) == 3

"""Fetching a data set from a small archive in the Decathlon's layout, made here and served from file:// or loopback."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rfss_core.datasets.fetch import KNOWN, PublicDataset, fetch_dataset
from rfss_core.errors import DownloadError, InputError

MEMBERS = {
    "Task04_Small/imagesTr/small_001.nii.gz": b"image 1",
    "Task04_Small/imagesTr/._small_001.nii.gz": b"macOS",
    "Task04_Small/imagesTr/small_004.nii.gz": b"image 4",
    "Task04_Small/imagesTs/small_002.nii.gz": b"image 2",
    "Task04_Small/labelsTr/small_001.nii.gz": b"label 1",
    "Task04_Small/labelsTr/._small_001.nii.gz": b"macOS",
    "Task04_Small/labelsTr/small_004.nii.gz": b"label 4",
    "Task04_Small/dataset.json": b"{}",
}


def pack(path: Path, members: dict[str, bytes], link: str | None = None) -> PublicDataset:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo("Task04_Small/imagesTr/link.nii.gz")
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return PublicDataset(path.as_uri(), digest, "CC0", "nobody")


@pytest.fixture
def source(tmp_path: Path) -> PublicDataset:
    return pack(tmp_path / "Task04_Small.tar", MEMBERS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_and_labels_are_laid_out_for_labelling(source: PublicDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fetch_dataset("small", out, source, progress=False) == out
    assert names(out) == ["images", "labels", "source.json"]
    assert names(out / "images") == ["small_001.nii.gz", "small_002.nii.gz", "small_004.nii.gz"]
    assert names(out / "labels") == ["small_001.nii.gz", "small_004.nii.gz"]
    assert (out / "images" / "small_002.nii.gz").read_bytes() == b"image 2"
    assert (out / "labels" / "small_001.nii.gz").read_bytes() == b"label 1"
    receipt = json.loads((out / "source.json").read_text())
    assert (receipt["md5"], receipt["images"], receipt["labels"]) == (source.md5, 3, 2)


def test_over_http_with_a_progress_bar(source: PublicDataset, server: str, tmp_path: Path) -> None:
    served = PublicDataset(f"{server}/Task04_Small.tar", source.md5, "CC0", "nobody")
    fetch_dataset("small", tmp_path / "out", served)
    assert len(names(tmp_path / "out" / "images")) == 3


def test_a_fetched_folder_is_not_fetched_again(source: PublicDataset, tmp_path: Path) -> None:
    out = fetch_dataset("small", tmp_path / "out", source, progress=False)
    (out / "images" / "small_001.nii.gz").write_bytes(b"kept")
    (tmp_path / "Task04_Small.tar").unlink()
    fetch_dataset("small", out, source, progress=False)
    assert (out / "images" / "small_001.nii.gz").read_bytes() == b"kept"


def test_somebody_elses_images_stay_untouched(source: PublicDataset, tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="choose another folder"):
        fetch_dataset("small", tmp_path / "out", source, progress=False)


def test_a_file_in_place_of_the_folder(source: PublicDataset, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        fetch_dataset("small", tmp_path / "out", source, progress=False)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'spleen'; known are: hippocampus"):
        fetch_dataset("spleen", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/none.tar", "file:///none/none.tar"])
def test_offline_says_what_to_do_instead(address: str, tmp_path: Path) -> None:
    nowhere = PublicDataset(address, "0" * 32, "CC0", "nobody")
    with pytest.raises(DownloadError, match=r"cannot download data set 'small'.*make demo"):
        fetch_dataset("small", tmp_path / "out", nowhere, progress=False)
    assert names(tmp_path / "out") == []


def test_missing_on_the_server(source: PublicDataset, server: str, tmp_path: Path) -> None:
    gone = PublicDataset(f"{server}/gone.tar", source.md5, "CC0", "nobody")
    with pytest.raises(DownloadError, match="404"):
        fetch_dataset("small", tmp_path / "out", gone, progress=False)


def test_another_checksum_keeps_nothing(source: PublicDataset, tmp_path: Path) -> None:
    changed = PublicDataset(source.url, "0" * 32, "CC0", "nobody")
    with pytest.raises(DownloadError, match="has not the checksum 0000"):
        fetch_dataset("small", tmp_path / "out", changed, progress=False)
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["../escape.nii.gz", "Task04_Small/../../escape.nii.gz", "/escape.nii.gz"])
def test_members_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    hostile = pack(tmp_path / "hostile.tar", {**MEMBERS, name: b"escaped"})
    with pytest.raises(DownloadError, match="cannot be extracted"):
        fetch_dataset("small", tmp_path / "out", hostile, progress=False)
    assert not list(tmp_path.rglob("escape.nii.gz"))
    assert names(tmp_path / "out") == []


def test_links_are_refused(tmp_path: Path) -> None:
    hostile = pack(tmp_path / "hostile.tar", MEMBERS, link="/etc/hostname")
    with pytest.raises(DownloadError, match="cannot be extracted"):
        fetch_dataset("small", tmp_path / "out", hostile, progress=False)


def test_an_archive_of_another_layout(tmp_path: Path) -> None:
    other = pack(tmp_path / "other.tar", {"photos/cat.png": b"cat"})
    with pytest.raises(DownloadError, match="holds no imagesTr or imagesTs"):
        fetch_dataset("small", tmp_path / "out", other, progress=False)
    assert names(tmp_path / "out") == []


def test_something_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_text("<html>please log in</html>" * 100)
    digest = hashlib.md5((tmp_path / "page.tar").read_bytes(), usedforsecurity=False).hexdigest()
    page = PublicDataset((tmp_path / "page.tar").as_uri(), digest, "CC0", "nobody")
    with pytest.raises(DownloadError, match="cannot be extracted"):
        fetch_dataset("small", tmp_path / "out", page, progress=False)


def test_the_hippocampus_is_the_one_that_monai_publishes() -> None:
    from monai.apps import DecathlonDataset

    known = KNOWN["hippocampus"]
    assert known.url == DecathlonDataset.resource["Task04_Hippocampus"]
    assert known.md5 == DecathlonDataset.md5["Task04_Hippocampus"]

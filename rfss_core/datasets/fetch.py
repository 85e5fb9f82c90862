"""Fetch: public labelled data sets, downloaded and laid out as ``rfss label`` reads them.

Downloading, checksum and extraction are MONAI's (``monai.apps.utils``), which refuses archive members that are links or
leave the folder; addresses and checksums are those of ``monai.apps.DecathlonDataset``.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rfss_core.errors import DownloadError, InputError

_RECEIPT = "source.json"


@dataclass(frozen=True)
class PublicDataset:
    """Where a public data set comes from."""

    url: str
    """Address of the archive, a tar in the Medical Segmentation Decathlon's layout."""
    md5: str
    """Checksum of the archive, as its publisher states it."""
    licence: str
    """Licence of images and labels."""
    citation: str
    """What to cite."""


KNOWN: dict[str, PublicDataset] = {
    "hippocampus": PublicDataset(
        url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
        md5="9d24dba78a72977dbd1d2e110310f31b",
        licence="CC BY-SA 4.0",
        citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022",
    ),
}
"""The data sets that :func:`fetch_dataset` knows by name."""


def fetch_dataset(name: str, folder: Path, source: PublicDataset | None = None, progress: bool = True) -> Path:
    """Download a public data set into ``folder/images`` and ``folder/labels``.

    All images land in ``images``, those of the publisher's test set too: they have no label, so ``rfss label`` labels
    them. A folder that already holds the same data set is left as it is; an interrupted call leaves nothing behind but
    an empty folder.

    Args:
        name: one of :data:`KNOWN`, or any name when ``source`` is given.
        folder: where to write; created where missing.
        source: where to fetch from. Default: the entry of :data:`KNOWN`, for example to name a mirror.
        progress: show a progress bar.

    Returns:
        ``folder``.

    Raises:
        InputError: the name is unknown, or the folder holds other images or labels.
        DownloadError: the archive cannot be reached, has another checksum, or is not laid out as expected.
    """
    if source is None:
        if name not in KNOWN:
            raise InputError(f"no data set is known as '{name}'; known are: {', '.join(sorted(KNOWN))}")
        source = KNOWN[name]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; name a folder")
    receipt = folder / _RECEIPT
    if receipt.is_file() and json.loads(receipt.read_text(encoding="utf-8")).get("md5") == source.md5:
        return folder
    for part in ("images", "labels", _RECEIPT):
        if (folder / part).exists():
            raise InputError(f"'{folder / part}' exists already and is not this data set; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        work = Path(temporary)
        _download_and_extract(name, source, work, progress)
        images, labels = _rearrange(name, source, work)
        about = {**asdict(source), "name": name, "images": images, "labels": labels}
        (work / _RECEIPT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        # The receipt moves last: with it, the folder is complete.
        for part in ("images", "labels", _RECEIPT):
            (work / part).rename(folder / part)
    return folder


def _download_and_extract(name: str, source: PublicDataset, work: Path, progress: bool) -> None:
    # MONAI's import takes seconds and the rest of the package does not need it.
    from monai.apps.utils import HashCheckError, download_url, extractall

    archive = work / "archive.tar"
    try:
        download_url(source.url, archive, hash_val=source.md5, hash_type="md5", progress=progress)
    except HashCheckError as error:
        raise DownloadError(
            f"what '{source.url}' sent has not the checksum {source.md5} of data set '{name}'; nothing was kept. "
            "Try again; if it stays so, the publisher has changed the archive or the line is tampered with"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"cannot download data set '{name}' from '{source.url}' ({error}). Without a network, copy the images and "
            "label maps here by hand into images/ and labels/, or run `make demo`, which needs no download"
        ) from error
    try:
        extractall(archive, work / "archive", has_base=False)
    except (ValueError, OSError, tarfile.TarError) as error:
        raise DownloadError(
            f"the archive of data set '{name}' cannot be extracted ({error}); nothing was kept"
        ) from error


def _rearrange(name: str, source: PublicDataset, work: Path) -> tuple[int, int]:
    """Move the Decathlon's imagesTr, imagesTs and labelsTr to images and labels; return how many of each."""
    counts = []
    for part, origins in (("images", ("imagesTr", "imagesTs")), ("labels", ("labelsTr",))):
        (work / part).mkdir()
        found = [
            path
            for origin in origins
            for path in sorted((work / "archive").glob(f"*/{origin}/*.nii.gz"))
            # macOS leaves "._name" files beside the real ones in these archives.
            if not path.name.startswith(".")
        ]
        if not found:
            wanted = " or ".join(origins)
            raise DownloadError(
                f"the archive of data set '{name}' from '{source.url}' holds no {wanted}; nothing was kept"
            )
        for path in found:
            shutil.move(path, work / part / path.name)
        counts.append(len(found))
    return counts[0], counts[1]

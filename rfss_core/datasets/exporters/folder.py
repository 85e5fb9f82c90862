"""The folder of an export: it appears whole or not at all, and an interrupted one goes on where it stopped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rfss_core.datasets.exporters.exporter import CaseFiles
from rfss_core.digest import digest_file, digest_json
from rfss_core.errors import CorruptStoreError, InputError, StorageFullError, StoreError
from rfss_core.imaging.output import write_atomically
from rfss_core.store.durable import make_folders, sync

MANIFEST = "rfss-export.json"
"""Name of an export's manifest, the last file to appear."""
_WORK = ".rfss-work"
"""Folder, in an unfinished export, of what is needed to go on with it."""
_FULL_CODES = {errno.ENOSPC, errno.EDQUOT}
_FULL = "no space is left to write '{}'; free some and start the same command again: finished cases are kept"


class ExportFolder:
    """A folder in the making, beside its final place, and its move to that place.

    Args:
        target: where the export appears.
        fingerprint: digest of all that the export's content depends on.
        code: version of the code that writes; files of another version are written again.
    """

    def __init__(self, target: Path, fingerprint: str, code: str) -> None:
        self.target = target
        self.partial = target.with_name(f".{target.name}.rfss-partial")
        self._fingerprint, self._code = fingerprint, code

    def finished(self) -> dict[str, Any] | None:
        """Return the manifest of the same export, if it stands here already, with all its files.

        Raises:
            InputError: the folder holds something else.
            CorruptStoreError: it is the same export, but files changed or vanished; they are named.
        """
        if not self.target.exists():
            return None
        if not self.target.is_dir():
            raise InputError(f"'{self.target}' is a file; name a new or an empty folder with --out")
        if not (self.target / MANIFEST).is_file():
            if any(self.target.iterdir()):
                raise InputError(f"'{self.target}' holds other files; name a new or an empty folder with --out")
            return None
        manifest = read_manifest(self.target)
        if manifest["fingerprint"] != self._fingerprint:
            raise InputError(
                f"'{self.target}' already holds another export (format {manifest['format']} of data set "
                f"'{manifest['dataset']['name']}', digest {manifest['dataset']['digest'][:12]}); name another folder"
            )
        verify_export(self.target)
        return manifest

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the unfinished folder for this process; files of another export in it are removed.

        Where the work inside ends in an :class:`InputError` and no case is finished, nothing is left behind.

        Raises:
            InputError: another process is exporting to the same place, or the folder cannot be made.
            StoreError: the folder cannot be written.
        """
        with _writing(self.partial):
            try:
                make_folders(self.partial / _WORK / "cases")
            except OSError as error:
                if error.errno in _FULL_CODES:
                    raise
                raise InputError(
                    f"'{self.target}' cannot be made ({error.strerror or error}); name another folder with --out"
                ) from error
            with (self.partial / _WORK / "lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise InputError(
                        f"another process is exporting to '{self.target}'; wait for it, or name another folder"
                    ) from error
                self._begin()
                try:
                    yield
                except InputError:
                    if not any((self.partial / _WORK / "cases").iterdir()):
                        shutil.rmtree(self.partial)
                    raise

    def written(self, case_id: str) -> tuple[dict[str, str], dict[str, Any]] | None:
        """Return files and detail of a case that an earlier try finished and that is still sound."""
        try:
            receipt = json.loads(self._receipt(case_id).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        files, detail = receipt["files"], receipt["detail"]
        if any(_digest(self.partial / path) != digest for path, digest in files.items()):
            return None
        return files, detail

    def record(self, case_id: str, written: CaseFiles) -> dict[str, str]:
        """Bring a case's files to disk and note that they are whole; return their sha256 by path."""
        files = {path: digest_file(self.partial / path) for path in self._listed(written.paths)}
        for folder in {(self.partial / path).parent for path in files}:
            sync(folder)
        receipt = {"files": files, "detail": dict(written.detail)}
        write_atomically(self._receipt(case_id), json.dumps(receipt).encode())
        return files

    def publish(self, manifest: Mapping[str, Any], case_files: set[str]) -> dict[str, Any]:
        """Add the other files' digests, write the manifest and move the folder to its place.

        Args:
            manifest: all but ``files``, ``fingerprint`` and ``digest``.
            case_files: paths of the cases' files. Temporary files of a killed writer are removed.

        Returns:
            The manifest as written.
        """
        common = {}
        for path in self._listed(("",)):
            if path in case_files or path.startswith(f"{_WORK}/"):
                continue
            if path.endswith(".partial"):
                (self.partial / path).unlink()
                continue
            sync(self.partial / path)
            common[path] = digest_file(self.partial / path)
        content = {**manifest, "files": common, "fingerprint": self._fingerprint}
        whole = {**content, "digest": digest_json(content)}
        shutil.rmtree(self.partial / _WORK)
        text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.partial / MANIFEST, text.encode())
        # An empty folder gives way; one that has been filled meanwhile does not.
        self.partial.replace(self.target)
        sync(self.target.parent)
        return whole

    def _begin(self) -> None:
        plan = self.partial / _WORK / "plan.json"
        wanted = {"fingerprint": self._fingerprint, "code": self._code}
        try:
            if json.loads(plan.read_bytes()) == wanted:
                return
        except (FileNotFoundError, ValueError):
            pass
        for path in self.partial.iterdir():
            if path.name == _WORK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for receipt in (self.partial / _WORK / "cases").iterdir():
            receipt.unlink()
        write_atomically(plan, json.dumps(wanted).encode())

    def _receipt(self, case_id: str) -> Path:
        return self.partial / _WORK / "cases" / f"{case_id}.json"

    def _listed(self, paths: tuple[str, ...]) -> list[str]:
        """Return files and the files below folders, sorted."""
        found = []
        for path in paths:
            place = self.partial / path
            if place.is_dir():
                found += [Path(top, name) for top, _, names in os.walk(place) for name in names]
            else:
                found.append(place)
        return sorted(path.relative_to(self.partial).as_posix() for path in found)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read an export's manifest.

    Raises:
        CorruptStoreError: it is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content = {key: value for key, value in manifest.items() if key != "digest"}
        sound = digest_json(content) == manifest["digest"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptStoreError(f"'{folder / MANIFEST}' is damaged ({error}); export to another folder") from error
    if not sound:
        raise CorruptStoreError(f"'{folder / MANIFEST}' was altered; export to another folder")
    return dict(manifest)


def verify_export(folder: Path) -> dict[str, Any]:
    """Hash every file of an export again and return its manifest.

    Raises:
        CorruptStoreError: the manifest is damaged, or files changed or vanished; they are named.
    """
    manifest = read_manifest(folder)
    files = {**manifest["files"], **{path: sha for case in manifest["cases"] for path, sha in case["files"].items()}}
    wrong = sorted(path for path, digest in files.items() if _digest(folder / path) != digest)
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise CorruptStoreError(
            f"{len(wrong)} of {len(files)} files of the export '{folder}' changed or vanished: "
            f"{', '.join(wrong[:10])}{more}; remove the folder, or export to another one"
        )
    return manifest


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError:
        return ""


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, StoreError):
        raise
    except OSError as error:
        if error.errno in _FULL_CODES:
            raise StorageFullError(_FULL.format(place)) from error
        raise StoreError(
            f"'{place}' cannot be written: {error.strerror or error}; check the folder's rights"
        ) from error

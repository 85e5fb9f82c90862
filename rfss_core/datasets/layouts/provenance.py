"""Provenance of a converted folder: which files each case came from, one line of JSON a case, written as it is done.

It is the journal that an interrupted conversion resumes from, too.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rfss_core.datasets.layouts.layout import LayoutCase, Part
from rfss_core.digest import digest_file

NAME = "provenance.jsonl"


class Origin(BaseModel):
    """A file of the data set that a case came from."""

    model_config = ConfigDict(frozen=True)
    path: str
    """Relative to the data set's folder."""
    size: int
    modified_ns: int
    sha256: str
    frame: int | None = None


class ConvertedCase(BaseModel):
    """One case that was written."""

    model_config = ConfigDict(frozen=True)
    name: str
    patient: str
    split: str
    image_file: str
    label_file: str | None
    image: Origin
    masks: tuple[Origin, ...]


class Journal:
    """The provenance file of one converted folder.

    Args:
        folder: the converted folder.
        source: the data set's folder.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self._path, self._folder, self._source = folder / NAME, folder, source
        self.known: dict[str, ConvertedCase] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else ():
            try:
                case = ConvertedCase.model_validate_json(line)
            except ValidationError:
                # What a crash cut off is done again.
                continue
            self.known[case.name] = case

    def done(self, case: LayoutCase) -> bool:
        """Tell whether a case was written from these very files, and is still there."""
        known = self.known.get(case.name)
        if known is None or (known.patient, known.split) != (case.patient, case.split):
            return False
        files = [self._folder / known.image_file, *([self._folder / known.label_file] if known.label_file else [])]
        origins, parts = (known.image, *known.masks), (case.image, *case.masks)
        return (
            all(file.is_file() for file in files)
            and len(origins) == len(parts)
            and all(self._same(origin, part) for origin, part in zip(origins, parts, strict=True))
        )

    def add(self, case: LayoutCase, image_file: str, label_file: str | None) -> None:
        """Append a case whose files are in place."""
        done = ConvertedCase(
            name=case.name,
            patient=case.patient,
            split=case.split,
            image_file=image_file,
            label_file=label_file,
            image=self._origin(case.image),
            masks=tuple(self._origin(part) for part in case.masks),
        )
        with self._path.open("a", encoding="utf-8") as stream:
            # A line that a crash cut off must not swallow this one.
            stream.write(f"\n{done.model_dump_json()}\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.known[case.name] = done

    def close(self, names: set[str]) -> None:
        """Write the file anew, by name, without cases that are not among ``names``, whose files are removed."""
        for name in self.known.keys() - names:
            gone = self.known.pop(name)
            for file in (gone.image_file, gone.label_file):
                if file is not None:
                    (self._folder / file).unlink(missing_ok=True)
        lines = (json.dumps(self.known[name].model_dump()) for name in sorted(self.known))
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(self._path)

    def _same(self, origin: Origin, part: Part) -> bool:
        state = part.path.stat()
        return (origin.path, origin.size, origin.modified_ns, origin.frame) == (
            self._relative(part.path),
            state.st_size,
            state.st_mtime_ns,
            part.frame,
        )

    def _origin(self, part: Part) -> Origin:
        state = part.path.stat()
        return Origin(
            path=self._relative(part.path),
            size=state.st_size,
            modified_ns=state.st_mtime_ns,
            sha256=_digest(part.path, state.st_mtime_ns),
            frame=part.frame,
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._source).as_posix()


@lru_cache(maxsize=2)
def _digest(path: Path, _modified_ns: int) -> str:
    """Return a file's sha256; the frames of one series ask for it one after the other."""
    return digest_file(path)

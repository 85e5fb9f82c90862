"""References to data sets: ``name@alias``, ``name/version``, a folder or a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rfss_core.errors import InputError

_NAMED = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:@(?P<alias>[A-Za-z][\w-]{0,99})|/(?P<version>\d{1,9}))?"
)
_PATH_LIKE = (".", "/", "~")


@dataclass(frozen=True)
class DatasetReference:
    """A registered data set by name; one of alias and version, or neither, is given."""

    name: str
    alias: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        return self.name if self.version is None else f"{self.name}/{self.version}"

    @classmethod
    def parse(cls, text: str) -> DatasetReference:
        """Read ``name@alias``, ``name/version`` or ``name``.

        Raises:
            InputError: the text is none of these.
        """
        match = _NAMED.fullmatch(text)
        if match is None:
            raise InputError(
                f"'{text}' names no data set; write name@alias (hearts@champion), name/version (hearts/3), "
                "or an existing folder or URL of a data set"
            )
        version = match["version"]
        return cls(match["name"], match["alias"], None if version is None else str(int(version)))


def is_folder(reference: str | Path) -> bool:
    """Return whether a reference means a folder or URL: by its form, or because such a folder exists."""
    if isinstance(reference, Path) or "://" in reference or reference.startswith(_PATH_LIKE):
        return True
    return reference != "" and Path(reference).is_dir()

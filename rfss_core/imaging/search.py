"""Search: every file under a folder or glob is found, refused with a reason, or named as ignored."""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rfss_core.errors import InputNotFoundError
from rfss_core.imaging.case import Quarantined
from rfss_core.imaging.names import unsafe_name


@dataclass
class Found:
    """What a search came upon."""

    root: Path
    """The folder that names are relative to."""
    files: dict[str, Path] = field(default_factory=dict)
    """Relative path, with ``/`` between folders, to regular file."""
    refused: list[Quarantined] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def search(pattern: str, what: str) -> Found:
    """Find the files under a folder, recursively, or the matches of a glob.

    Links are followed inside the folder only. A linked folder inside it is not entered: its files are found where
    they are.

    Args:
        pattern: folder, file or glob.
        what: the noun for messages: ``images`` or ``labels``.

    Raises:
        InputNotFoundError: nothing is there.
    """
    # Workers may run in another folder.
    path = Path(pattern).expanduser().absolute()
    if path.is_dir():
        found = Found(path)
        _walk(found, path)
    elif path.is_file():
        found = Found(path.parent)
        _add(found, path)
    elif glob.has_magic(pattern):
        parts = path.parts
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        found = Found(Path(*parts[:fixed]))
        for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 (the pattern may be absolute)
            if Path(match).is_dir() and not Path(match).is_symlink():
                _walk(found, Path(match))
            elif not Path(match).is_dir():
                _add(found, Path(match))
        if not (found.files or found.refused):
            raise InputNotFoundError(f"{what}: no file matches '{pattern}'; check the pattern and its quotes")
    else:
        raise InputNotFoundError(f"{what}: '{pattern}' does not exist; check the path")
    return found


def relative_name(root: Path, path: Path) -> str:
    """Return a path below ``root`` with ``/`` between folders."""
    return path.relative_to(root).as_posix()


def printable(name: str) -> str:
    """Return a name that any terminal, log and JSON file can carry."""
    safe = name.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in safe)


def _walk(found: Found, folder: Path) -> None:
    def unreadable(error: OSError) -> None:
        name = printable(relative_name(found.root, Path(error.filename)))
        found.refused.append(
            Quarantined(f"{name}/", "unreadable", f"{name}: the folder cannot be read ({error.strerror}); grant access")
        )

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        for name in list(folders):
            path = Path(parent, name)
            if name.startswith("."):
                folders.remove(name)
                found.ignored.append(f"{printable(relative_name(found.root, path))}/")
            elif path.is_symlink():
                folders.remove(name)
                if _leaves(found, path):
                    found.refused.append(_unsafe(found, path))
                else:
                    found.ignored.append(f"{printable(relative_name(found.root, path))}/")
        for name in sorted(files):
            _add(found, Path(parent, name))


def _add(found: Found, path: Path) -> None:
    name = relative_name(found.root, path)
    shown = printable(name)
    if path.name.startswith("."):
        found.ignored.append(shown)
        return
    problem = unsafe_name(name)
    if problem is not None:
        found.refused.append(Quarantined(shown, "unsafe_path", f"{shown}: the name {problem}; rename the file"))
        return
    if _leaves(found, path):
        found.refused.append(_unsafe(found, path))
        return
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        found.refused.append(
            Quarantined(shown, "unreadable", f"{shown}: cannot be opened ({error.strerror}); restore or remove it")
        )
        return
    if regular:
        found.files[name] = path
    else:
        found.ignored.append(shown)


def _leaves(found: Found, path: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(found.root.resolve())
    except (OSError, RuntimeError):
        # A loop of links; opening it fails with its own message.
        return False


def _unsafe(found: Found, path: Path) -> Quarantined:
    name = printable(relative_name(found.root, path))
    return Quarantined(
        name, "unsafe_path", f"{name}: is a link that leaves the folder; copy the file in, or name the folder it is in"
    )

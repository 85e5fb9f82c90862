"""The private part of a workspace with salted case ids: which salt it belongs to, and what the ids stand for.

``privacy.json`` holds the salt's fingerprint. ``private/names.json`` is the one place of a workspace that names
patients; it is for its owner's eyes alone, and is in no data set, artifact or export. An object store gets none: there
the salt and the images give the names again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from rfss_core.errors import CorruptStoreError, InputNotFoundError, SettingsError
from rfss_core.imaging import PrivateName, Pseudonyms
from rfss_core.store.files import Files
from rfss_core.store.manifest import FOLDER as MANIFEST

MARK = "privacy.json"
FOLDER = "private"
NAMES = f"{FOLDER}/names.json"


def hold_identity(files: Files, pseudonyms: Pseudonyms | None) -> None:
    """Bind a new workspace to its kind of case ids, and refuse another kind, or another salt, in an old one.

    Raises:
        SettingsError: the workspace has plain names and salted ones are asked for, or the other way round, or its ids
            were made with another salt.
        CorruptStoreError: ``privacy.json`` is damaged.
    """
    known = salt_fingerprint(files)
    if pseudonyms is None:
        if known:
            raise SettingsError(
                f"workspace '{files.url}' has salted case ids, and plain ones would put names beside them; add "
                "--case-ids salted, or begin a new workspace"
            )
        return
    if known:
        if known != pseudonyms.fingerprint:
            raise SettingsError(
                f"this salt (fingerprint {pseudonyms.fingerprint}) is not that of workspace '{files.url}' ({known}) "
                "and would give every patient another id; restore the old salt, or begin a new workspace"
            )
        return
    if files.names("images") or files.names(MANIFEST):
        raise SettingsError(
            f"workspace '{files.url}' holds cases under their plain names, which salted ids would not remove; begin a "
            "new workspace"
        )
    mark = {"case_ids": "salted", "salt": pseudonyms.fingerprint}
    files.write_bytes(MARK, json.dumps(mark, sort_keys=True).encode() + b"\n")


def salt_fingerprint(files: Files) -> str:
    """Return the fingerprint of the salt of a workspace's case ids; empty where names are plain.

    Raises:
        CorruptStoreError: ``privacy.json`` is damaged.
    """
    if not files.exists(MARK):
        return ""
    try:
        return str(json.loads(files.read_bytes(MARK))["salt"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(f"'{MARK}' of workspace '{files.url}' is damaged; restore it") from error


def keep_private(files: Files, names: Iterable[PrivateName]) -> bool:
    """Add to what the ids of a local workspace stand for, and return whether it is kept.

    Args:
        files: the workspace's files.
        names: of this run; those of earlier runs stay, because earlier data sets need them.
    """
    path = files.local_path(NAMES)
    if path is None:
        return False
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Before anything is in it, whatever the folder was before.
    folder.chmod(0o700)
    merged = (_read(files) if path.exists() else {}) | {entry.id: entry for entry in names}
    rows = [dataclasses.asdict(merged[name]) for name in sorted(merged)]
    files.write_bytes(NAMES, (json.dumps(rows, indent=1, ensure_ascii=True) + "\n").encode())
    path.chmod(0o600)
    return True


def private_names(files: Files) -> dict[str, PrivateName]:
    """Return what the ids of a workspace stand for, by id.

    Raises:
        InputNotFoundError: this copy of the workspace does not say, or its names are plain.
        CorruptStoreError: the file is damaged.
    """
    if not files.exists(NAMES):
        why = (
            f"its names are not kept beside it ('{NAMES}' is missing); run `rfss label` again where the images and the "
            "salt are, into a local workspace"
            if salt_fingerprint(files)
            else "its case ids are plain: they are the names already"
        )
        raise InputNotFoundError(f"workspace '{files.url}': {why}")
    return _read(files)


def _read(files: Files) -> dict[str, PrivateName]:
    try:
        return {row["id"]: PrivateName(**row) for row in json.loads(files.read_bytes(NAMES))}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"'{NAMES}' of workspace '{files.url}' is damaged; remove it and run `rfss label` again"
        ) from error

"""The salt of case ids: a secret that lives in the environment or in a file of its user, never in a workspace."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from rfss_core.errors import InputNotFoundError, SettingsError
from rfss_core.settings.privacy import PrivacySettings

VARIABLE, FILE_VARIABLE = "RFSS_CASE_SALT", "RFSS_CASE_SALT_FILE"
SHORTEST = 16
"""Characters of a salt: the fingerprint that workspaces keep must not be guessed backwards."""
_BYTES = 32


def find_salt(settings: PrivacySettings, *, create: bool, workspace: Path | None = None) -> bytes:
    """Return the salt; a file that the settings name goes before the environment.

    Args:
        settings: ``salt_file`` is read.
        create: make the file where it is missing.
        workspace: folder of the workspace, in which the salt must not lie.

    Raises:
        InputNotFoundError: there is no such file, and ``create`` is off.
        SettingsError: the salt is too short, others may read the file, or it lies in the workspace.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given and settings.salt_file is None:
        return _checked(given, VARIABLE)
    path = salt_path(settings)
    if workspace is not None and path.resolve().is_relative_to(workspace.resolve()):
        raise SettingsError(
            f"salt file '{path}' lies in workspace '{workspace}': whoever gets the workspace would have it; name "
            "another place in privacy.salt_file"
        )
    if create:
        _create(path)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise InputNotFoundError(
            f"the salt of the case ids is not in '{path}'; set {VARIABLE}, or {FILE_VARIABLE} to the file that the "
            "labelling run used"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"salt file '{path}' cannot be read ({error}); restore it") from error
    if mode & 0o077:
        raise SettingsError(f"salt file '{path}' can be read by others (mode {mode:o}); run `chmod 600 '{path}'`")
    return _checked(text, f"salt file '{path}'")


def salt_path(settings: PrivacySettings) -> Path:
    """Return the file that holds the salt where the environment does not give it."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    named = settings.salt_file or os.environ.get(FILE_VARIABLE) or f"{config}/rfss/case-salt"
    return Path(named).expanduser().absolute()


def _create(path: Path) -> None:
    """Write a new salt unless there is one; of two runs that begin at once one writes it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise SettingsError(f"salt file '{path}' cannot be made ({error.strerror}); name another place") from error
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(_BYTES) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _checked(text: str, where: str) -> bytes:
    if len(text) < SHORTEST:
        raise SettingsError(
            f"{where} holds {len(text)} characters, but a salt needs {SHORTEST}; make one with `openssl rand -hex 32`"
        )
    return text.encode()

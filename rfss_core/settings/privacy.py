"""Settings of privacy: what a workspace and all that is made from it call cases and patients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rfss_core.settings.base import SettingsModel

CaseIds = Literal["plain", "salted"]


class PrivacySettings(SettingsModel):
    """What cases and patients are called. The salt itself is no setting: see ``rfss_core/imaging/salt.py``."""

    case_ids: CaseIds = Field(
        "plain",
        description="plain: names of files, as they are. salted: keyed hashes (HMAC-SHA256) of patient and name stand "
        "in for them in the workspace, logs, MLflow and Prefect; one workspace stays with one of the two.",
    )
    salt_file: str | None = Field(
        None,
        description="File outside the workspace that holds the salt, mode 0600; made at first use. "
        "Default: RFSS_CASE_SALT (the salt), RFSS_CASE_SALT_FILE, else ~/.config/rfss/case-salt.",
    )

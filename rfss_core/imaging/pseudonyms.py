"""Pseudonyms: keyed hashes that stand in for the names of patients, cases and files.

HMAC-SHA256 with the salt as its key: the same salt gives the same pseudonyms, without it nobody can try names out.
A case of a patient is called ``p-<12 digits>_c-<12 digits>``, so that whatever groups by patient still does.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from pathlib import Path

from rfss_core.errors import SettingsError
from rfss_core.imaging.case import CaseSource, Discovery, PrivateName, Quarantined
from rfss_core.imaging.hiding import sentence
from rfss_core.imaging.names import pairing_key
from rfss_core.imaging.salt import find_salt
from rfss_core.imaging.volume import image_files
from rfss_core.settings.privacy import PrivacySettings

_DIGITS = 12
"""48 bits: among a million patients two share a pseudonym with a probability of 0.2 %, and then count as one."""
_LABELS = "labels:"


@dataclass(frozen=True)
class Pseudonyms:
    """The names that one salt gives."""

    salt: bytes

    def __repr__(self) -> str:
        return f"Pseudonyms({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """16 digits that tell one salt from another and do not give it away."""
        return self._digits("fingerprint", "", 16)

    def patient(self, name: str) -> str:
        """Return a patient's pseudonym."""
        return f"p-{self._digits('patient', name)}"

    def case(self, name: str, patient: str) -> str:
        """Return a case's pseudonym: its id and its name."""
        return f"{self.patient(patient)}_{self.case_part(name)}"

    def case_part(self, name: str) -> str:
        """Return the part of a case's pseudonym that its name alone gives."""
        return f"c-{self._digits('case', name)}"

    def file(self, name: str) -> str:
        """Return the pseudonym of a file that became no case."""
        return f"f-{self._digits('file', name)}"

    def hide(self, found: Discovery) -> Discovery:
        """Return what discovery found under pseudonyms; ``private`` tells what they stand for."""
        cases, quarantined, private = [], [], []
        for case in found.cases:
            hidden = self.case(case.name, case.patient)
            cases.append(
                replace(
                    case,
                    case_id=hidden,
                    name=hidden,
                    patient=self.patient(case.patient),
                    hidden=(case.name, case.patient),
                )
            )
            private.append(PrivateName(hidden, case.name, case.patient, _place(case), str(case.label or "")))
        for entry in found.quarantined:
            name = self._file(entry.name)
            patient = None if entry.patient is None else self.patient(entry.patient)
            quarantined.append(Quarantined(name, entry.reason, f"{name}: {sentence(entry.reason)}", patient))
            private.append(PrivateName(name, entry.name, entry.patient or "", message=entry.message))
        return Discovery(
            sorted(cases, key=lambda case: case.name),
            sorted(quarantined, key=lambda entry: (entry.name, entry.reason)),
            sorted(self._file(name) for name in found.ignored),
            tuple(sorted(private, key=lambda entry: (entry.id, entry.message))),
        )

    def _file(self, name: str) -> str:
        bare = name.removeprefix(_LABELS)
        return (_LABELS if bare != name else "") + self.file(bare)

    def _digits(self, kind: str, name: str, digits: int = _DIGITS) -> str:
        # Unicode's two spellings of one name are one name, as in pairing; names may hold bytes that are no UTF-8.
        text = f"{kind}:{pairing_key(name)}".encode("utf-8", "surrogateescape")
        return hmac.new(self.salt, text, hashlib.sha256).hexdigest()[:digits]


def open_pseudonyms(
    settings: PrivacySettings, *, create: bool = True, workspace: Path | None = None, expected: str = ""
) -> Pseudonyms | None:
    """Return the pseudonyms that the settings ask for; None with plain names.

    Args:
        settings: of privacy.
        create: make the file of the salt where it is missing.
        workspace: folder of the workspace, in which the salt must not lie.
        expected: fingerprint that the salt must have.

    Raises:
        InputNotFoundError: the salt is nowhere.
        SettingsError: it is too short, readable by others, in the workspace, or another one than expected.
    """
    if settings.case_ids == "plain":
        return None
    found = Pseudonyms(find_salt(settings, create=create, workspace=workspace))
    if expected and found.fingerprint != expected:
        raise SettingsError(
            f"this salt (fingerprint {found.fingerprint}) is not the one that the case ids were made with "
            f"({expected}): every patient would get another id; restore the old salt, or begin a new workspace"
        )
    return found


def _place(case: CaseSource) -> str:
    files = image_files(case)
    return str(Path(files[0]).parent if case.kind == "dicom" else files[0])

"""Promotion: which version of a data set is the champion, the one that training jobs take."""

from __future__ import annotations

import getpass
import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime

from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import InputError
from rfss_core.settings import PromotionSettings
from tasks.events_out import DEMOTED, PROMOTED, ROLLED_BACK, dataset_resource, send_event
from tasks.registry import CANDIDATE, CHAMPION, DataRegistry, DatasetVersion

log = logging.getLogger("rfss")

PREVIOUS = "previous_champion"
"""Tag of a champion: the version that was champion before it."""
VERDICT = "promotion_verdict"
"""Tag of a version: what the policy said of it, once."""


@dataclass(frozen=True)
class Promotion:
    """What a promotion, rollback or demotion did."""

    name: str
    champion: DatasetVersion | None
    """The champion now; None after a demotion."""
    previous: str | None
    """Version that was champion before."""
    changed: bool
    """False where the version was the champion already."""
    told_prefect: bool
    """Whether a Prefect server has the event."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the policy says about a version."""

    promote: bool
    reason: str


def promote(registry: DataRegistry, reference: DatasetReference, by: str | None = None) -> Promotion:
    """Make a version the champion.

    Args:
        registry: the data registry.
        reference: the version; a bare name means its candidate.
        by: who or what promotes; default: the user's name on this machine.

    Raises:
        UnknownDatasetError: there is no such version.
        InputError: the version failed its quality gate; it is never promoted.
    """
    if reference.alias is None and reference.version is None:
        reference = DatasetReference(reference.name, alias=CANDIDATE)
    version = registry.find(reference)
    if version.status != "accepted":
        raise InputError(
            f"data set '{version}' failed its quality gate and is never promoted; label more cases by hand, or lower "
            "quality.min_dice, and run `rfss label` again"
        )
    previous = registry.aliases(version.name).get(CHAMPION)
    if previous == version.version:
        return Promotion(version.name, version, previous, changed=False, told_prefect=False)
    note = _other_patients(registry, version, previous)
    _note(registry, version, previous, by)
    return _move(registry, version, previous, PROMOTED, by, (note,) if note else ())


def rollback(registry: DataRegistry, name: str, by: str | None = None) -> Promotion:
    """Make the version champion again that was before the present one.

    Raises:
        UnknownDatasetError: there is no such data set.
        InputError: it has no champion, or none was before it.
    """
    current = _champion(registry, name)
    previous = current.tags.get(PREVIOUS)
    if not previous:
        raise InputError(
            f"version {current.version} of '{name}' is its first champion, so there is none to go back to; "
            f"take the alias away with `rfss demote {name}`, or promote another version"
        )
    version = registry.find(DatasetReference(name, version=previous))
    return _move(registry, version, current.version, ROLLED_BACK, by)


def demote(registry: DataRegistry, name: str, by: str | None = None) -> Promotion:
    """Take the alias ``champion`` away; no version has it then.

    Raises:
        UnknownDatasetError: there is no such data set.
        InputError: it has no champion.
    """
    current = _champion(registry, name)
    registry.remove_alias(name, CHAMPION)
    told = _tell(DEMOTED, registry, current, current.version, by)
    return Promotion(name, None, current.version, changed=True, told_prefect=told)


def judge(registry: DataRegistry, version: DatasetVersion, settings: PromotionSettings) -> Verdict:
    """Say whether the policy promotes a version.

    Args:
        registry: the data registry.
        version: a version that was just registered.
        settings: the policy.
    """
    if settings.policy == "manual":
        return Verdict(promote=False, reason="policy manual: `rfss promote` decides")
    if version.status != "accepted":
        return Verdict(promote=False, reason="it failed its quality gate")
    champion = registry.aliases(version.name).get(CHAMPION)
    if champion is None:
        return Verdict(promote=True, reason="there is no champion yet")
    if champion == version.version:
        return Verdict(promote=False, reason="it is the champion already")
    if settings.policy == "always":
        return Verdict(promote=True, reason="policy always")
    return _compared(version, registry.find(DatasetReference(version.name, version=champion)), settings)


def promote_by_policy(registry: DataRegistry, version: DatasetVersion, settings: PromotionSettings) -> Promotion | None:
    """Promote a version if the policy says so; return what happened, or None."""
    if VERDICT in version.tags:
        # A run that only found the data set again: what was decided stays, a rollback of the user's too.
        return None
    verdict = judge(registry, version, settings)
    log.info("data set %s is %s: %s", version, "promoted" if verdict.promote else "not promoted", verdict.reason)
    promotion = None
    if verdict.promote:
        reference = DatasetReference(version.name, version=version.version)
        promotion = promote(registry, reference, f"policy {settings.policy}")
    # Last, so that a run that was killed decides again.
    registry.tag(version, {VERDICT: verdict.reason})
    return promotion


def _compared(version: DatasetVersion, champion: DatasetVersion, settings: PromotionSettings) -> Verdict:
    ours, theirs = version.held_out_dice, champion.held_out_dice
    if ours is None or theirs is None:
        which = version if ours is None else champion
        return Verdict(promote=False, reason=f"version {which.version} has no held-out Dice to compare")
    same = _same_patients(version, champion)
    beside = "the same held-out patients" if same else "other held-out patients"
    figures = f"held-out Dice {ours:.4f} against {theirs:.4f} of champion {champion.version} on {beside}"
    if settings.same_held_out and not same:
        return Verdict(promote=False, reason=f"{figures}; promotion.same_held_out asks for the same")
    # A difference that equals the margin on paper must not fail by a rounding of its binary form.
    ahead = ours - theirs > settings.margin or math.isclose(ours - theirs, settings.margin, abs_tol=1e-9)
    if settings.margin == 0:
        ahead = ours > theirs
    return Verdict(promote=ahead, reason=f"{figures}, margin {settings.margin:g}")


def _same_patients(one: DatasetVersion, other: DatasetVersion) -> bool:
    ours, theirs = one.tags.get("held_out_digest"), other.tags.get("held_out_digest")
    return ours is not None and ours == theirs


def _other_patients(registry: DataRegistry, version: DatasetVersion, previous: str | None) -> str:
    if previous is None:
        return ""
    before = registry.find(DatasetReference(version.name, version=previous))
    if _same_patients(version, before):
        return ""
    return (
        f"versions {version.version} and {before.version} were measured on different held-out patients: their Dice "
        "cannot be compared exactly"
    )


def _champion(registry: DataRegistry, name: str) -> DatasetVersion:
    version = registry.aliases(name).get(CHAMPION)
    if version is None:
        raise InputError(f"data set '{name}' has no champion; promote a version with `rfss promote {name}`")
    return registry.find(DatasetReference(name, version=version))


def _note(registry: DataRegistry, version: DatasetVersion, previous: str | None, by: str | None) -> None:
    tags = {"promoted_at": datetime.now(UTC).isoformat(timespec="seconds"), "promoted_by": by or _user()}
    registry.tag(version, {**tags, PREVIOUS: previous or ""})


def _move(
    registry: DataRegistry,
    version: DatasetVersion,
    previous: str | None,
    event: str,
    by: str | None,
    notes: tuple[str, ...] = (),
) -> Promotion:
    registry.set_alias(version, CHAMPION)
    champion = registry.find(DatasetReference(version.name, version=version.version))
    told = _tell(event, registry, champion, previous, by)
    return Promotion(version.name, champion, previous, changed=True, told_prefect=told, notes=notes)


def _tell(event: str, registry: DataRegistry, version: DatasetVersion, previous: str | None, by: str | None) -> bool:
    payload = {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "tracking_uri": registry.uri,
        "previous": previous,
        "by": by or _user(),
    }
    return send_event(event, dataset_resource(version.name), version.name, payload)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"

"""Promotion by command and by policy, in a real MLflow store (sqlite); no Prefect server is there to be told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from published import Published, record_of

from rfss_core.datasets import load
from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import InputError, UnknownDatasetError
from rfss_core.settings import PromotionSettings
from rfss_core.store.files import Files
from tasks.dataset_run import register_dataset
from tasks.promotion import demote, judge, promote, promote_by_policy, rollback
from tasks.registry import DataRegistry, DatasetVersion

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def workspace(registered: Published, tmp_path: Path) -> Published:
    """A copy of the registered data set that a test may change."""
    shutil.copytree(registered.workspace, tmp_path / "work")
    return replace(registered, workspace=tmp_path / "work")


@pytest.fixture(scope="module")
def championed(registered: Published, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A copy whose version 1 is the champion."""
    folder = tmp_path_factory.mktemp("championed") / "work"
    shutil.copytree(registered.workspace, folder)
    copy = replace(registered, workspace=folder)
    promote(registry_of(copy), DatasetReference("hearts"))
    return copy


def registry_of(workspace: Published) -> DataRegistry:
    return DataRegistry(f"sqlite:///{workspace.workspace / 'mlflow.db'}")


def register(
    workspace: Published, mark: str, dice: float | None = 0.8, held_out: str = "those", status: str = "accepted"
) -> DatasetVersion:
    """Register one more version of the data set, as a run with other settings would."""
    tags = {"held_out_digest": held_out} | ({} if dice is None else {"held_out_dice": str(dice)})
    record = record_of(workspace, fingerprint=mark, tags=tags, status=status)
    return register_dataset(record, Files(workspace.workspace)).version


def test_champions_follow_each_other_and_come_back(workspace: Published) -> None:
    registry = registry_of(workspace)
    second = register(workspace, "second", held_out="others")
    assert registry.aliases("hearts") == {"candidate": "2"}
    done = promote(registry, DatasetReference.parse("hearts/1"), by="tester")
    assert (done.previous, done.changed, done.told_prefect) == (None, True, False)
    assert done.champion is not None
    assert done.champion.tags["promoted_by"] == "tester"
    assert load("hearts@champion", workspace=workspace.workspace, verify="none").version == "1"
    # A bare name means the candidate.
    done = promote(registry, DatasetReference("hearts"))
    assert (done.champion, done.previous) == (registry.find(DatasetReference("hearts", version="2")), "1")
    assert "different held-out patients" in done.notes[0]
    assert not promote(registry, DatasetReference("hearts", version=second.version)).changed
    assert rollback(registry, "hearts").champion == registry.find(DatasetReference("hearts", version="1"))
    with pytest.raises(InputError, match="first champion"):
        rollback(registry, "hearts")
    assert demote(registry, "hearts").champion is None
    assert registry.aliases("hearts") == {"candidate": "2"}
    for act in (demote, rollback):
        with pytest.raises(InputError, match="has no champion"):
            act(registry, "hearts")
        with pytest.raises(UnknownDatasetError, match="there are: hearts"):
            act(registry, "lungs")


def test_what_failed_its_gate_is_never_promoted(workspace: Published) -> None:
    registry = registry_of(workspace)
    bad = register(workspace, "bad", dice=0.99, status="rejected")
    assert registry.aliases("hearts") == {"candidate": "1"}
    with pytest.raises(InputError, match="hearts/2' failed its quality gate"):
        promote(registry, DatasetReference("hearts", version=bad.version))
    for policy in ("better", "always"):
        assert not judge(registry, bad, PromotionSettings(policy=policy)).promote  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dice", "held_out", "settings", "expected", "reason"),
    [
        (0.82, "those", {}, True, "0.8200 against 0.8000 of champion 1 on the same held-out patients, margin 0.01"),
        (0.81, "those", {}, True, "margin 0.01"),
        (0.809, "those", {}, False, "margin 0.01"),
        (0.8, "those", {"margin": 0.0}, False, "margin 0"),
        (0.9, "others", {}, True, "on other held-out patients"),
        (0.9, "others", {"same_held_out": True}, False, "same_held_out asks for the same"),
        (None, "those", {}, False, "version 2 has no held-out Dice"),
        (0.1, "those", {"policy": "always"}, True, "policy always"),
        (0.99, "those", {"policy": "manual"}, False, "`rfss promote` decides"),
    ],
)
def test_the_policy_compares_with_the_champion(
    championed: Published, dice: float | None, held_out: str, settings: dict[str, object], expected: bool, reason: str
) -> None:
    registry = registry_of(championed)
    champion = registry.find(DatasetReference("hearts", version="1"))
    tags = {"held_out_digest": held_out} | ({} if dice is None else {"held_out_dice": str(dice)})
    verdict = judge(
        registry, replace(champion, version="2", tags=tags), PromotionSettings(**{"policy": "better", **settings})
    )
    assert verdict.promote is expected
    assert reason in verdict.reason


def test_the_policy_decides_once(workspace: Published) -> None:
    registry, settings = registry_of(workspace), PromotionSettings(policy="better")
    first = registry.find(DatasetReference("hearts", version="1"))
    done = promote_by_policy(registry, first, settings)
    assert done is not None
    assert done.champion is not None
    assert done.champion.tags["promoted_by"] == "policy better"
    demote(registry, "hearts")
    # The same run again finds its version, and leaves alone what somebody decided since.
    again = register(workspace, str(workspace.manifest.meta["fingerprint"]))
    assert again.version == "1"
    assert promote_by_policy(registry, again, settings) is None
    assert registry.aliases("hearts") == {"candidate": "1"}
    worse = register(workspace, "worse", dice=0.7)
    promote(registry, DatasetReference("hearts", version="1"))
    assert promote_by_policy(registry, worse, settings) is None
    verdict = registry.find(DatasetReference("hearts", version=worse.version)).tags["promotion_verdict"]
    assert verdict.startswith("held-out Dice 0.7000 against 0.8000")

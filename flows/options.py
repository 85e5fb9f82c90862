"""Options that several commands share, and what they mean as settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rfss_core.errors import SettingsError
from rfss_core.settings import (
    CaseIds,
    LabelSettings,
    PresetName,
    PrivacySettings,
    PromotionPolicy,
    SegmenterName,
    Strategy,
)


def check_places(settings: LabelSettings) -> None:
    """Refuse unusable folders in a moment, before Prefect starts; begin the workspace, where the log will lie."""
    from rfss_core.imaging import discover, open_pseudonyms
    from rfss_core.store import Workspace
    from rfss_core.store.files import Files
    from rfss_core.store.lease import refuse_busy
    from rfss_core.store.private import hold_identity

    pseudonyms = open_pseudonyms(settings.privacy, workspace=Files(settings.workspace).root)
    discover(settings.images, settings.labels, settings.imaging, pseudonyms)
    files = Workspace.open(settings.workspace).files
    hold_identity(files, pseudonyms)
    refuse_busy(files)


def filter_of(filters: list[str] | None, match: list[str] | None) -> dict[str, Any]:
    """Return the settings that ``--filter`` and ``--match`` mean, without those that were not given.

    Raises:
        SettingsError: a filter that is not COLUMN=VALUE.
    """
    found: dict[str, Any] = {}
    for text in filters or []:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not (name and equals and values):
            raise SettingsError(f"--filter '{text}' is not COLUMN=VALUE[,VALUE], for example modality=MR")
        listed = [value.strip() for value in values.split(",")]
        if name in ("contains", "lacks", "label_source"):
            found.setdefault(name, []).extend(listed)
        else:
            found.setdefault("equals", {}).setdefault(name, []).extend(listed)
    return found | ({"match": match} if match else {})


def described(name: str, model: Any = LabelSettings) -> str:
    """Return a setting's own description, for the help of its option."""
    return str(model.model_fields[name].description)


Images = Annotated[str, typer.Argument(metavar="IMAGES", help=described("images"), show_default=False)]
Labels = Annotated[str | None, typer.Option("--labels", help=described("labels"), show_default=False)]
WorkspaceUrl = Annotated[str | None, typer.Option("--workspace", help=described("workspace"), show_default=False)]
Preset = Annotated[PresetName | None, typer.Option("--preset", help=described("preset") + " Default: tiny.")]
K = Annotated[int | None, typer.Option("--k", help=described("k"))]
HeldOut = Annotated[float | None, typer.Option("--held-out", help=described("held_out") + " Default: 0.3.")]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="inline, local, gpus, cluster (described in --config), or a scheduler's tcp:// address. Default: inline.",
    ),
]
MinDice = Annotated[float | None, typer.Option("--min-dice", help="Gate on the held-out mean Dice. Default: 0.7.")]
Promote = Annotated[
    PromotionPolicy | None,
    typer.Option("--promote", help="When an accepted data set becomes the champion by itself. Default: manual."),
]
DatasetName = Annotated[str | None, typer.Option("--dataset", help=described("dataset"))]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; options given here win.")]
Seed = Annotated[int | None, typer.Option("--seed", help=described("seed") + " Default: 0.")]
StrategyName = Annotated[
    Strategy | None, typer.Option("--strategy", help="How support slices are chosen. Default: dino.")
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="COLUMN=VALUE[,VALUE]",
        help="Support slices must have one of these values, for example modality=MR; contains=CLASS and lacks=CLASS "
        "look at their label maps. May be given several times.",
    ),
]
Match = Annotated[
    list[str] | None,
    typer.Option("--match", metavar="COLUMN", help="Support slices must have the query's own value in this column."),
]
Metadata = Annotated[str | None, typer.Option("--metadata", metavar="FILE.csv", help="Further columns for --filter.")]
SegmenterOption = Annotated[
    SegmenterName | None,
    typer.Option("--segmenter", help="sam2-memory or label-fusion; the others only evaluate. Default: sam2-memory."),
]
SupportSlices = Annotated[int | None, typer.Option("--support-slices", help="Use only so many support slices.")]
PatientPattern = Annotated[
    str | None, typer.Option("--patient-pattern", help="Regular expression that finds the patient in a file name.")
]
CaseIdsOption = Annotated[
    CaseIds | None,
    typer.Option("--case-ids", help=described("case_ids", PrivacySettings) + " Default: plain."),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify", help="Hash again what earlier runs finished, and redo what is damaged.", show_default=False
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every chunk.")]

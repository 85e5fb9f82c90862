"""``rfss select``: what to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import (
    CaseIdsOption,
    Config,
    ExecutorName,
    Images,
    Labels,
    PatientPattern,
    Preset,
    Seed,
    Verbose,
    Verify,
    check_places,
    described,
)
from rfss_core.errors import SettingsError
from rfss_core.settings import Objective, SelectionSettings, SelectSettings, load_settings


def select(
    images: Images = "",
    n: Annotated[int | None, typer.Option("--n", help="Slices to choose. Default: 50.")] = None,
    labels: Labels = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Keep embeddings here, for `rfss label`. Default: nowhere.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder, or select.json's own name. Default: selection, in the workspace if local."),
    ] = None,
    preset: Preset = None,
    objective: Annotated[
        Objective | None,
        typer.Option("--objective", help="Distance to keep small: mean, or radius (k-center). Default: mean."),
    ] = None,
    per_patient: Annotated[
        int | None, typer.Option("--per-patient", help=described("per_patient", SelectionSettings))
    ] = None,
    executor: ExecutorName = None,
    config: Config = None,
    seed: Seed = None,
    patient_pattern: PatientPattern = None,
    case_ids: CaseIdsOption = None,
    verify: Verify = None,
    verbose: Verbose = False,
) -> None:
    """Choose the slices to label next: those that, once labelled, leave the fewest others without a similar one."""
    from flows.console import show_selection
    from flows.endings import outcome_of
    from flows.select_slices import output_folder, select_slices, with_workspace
    from flows.session import command_session

    settings = load_settings(
        {
            "images": images or None,
            "labels": labels,
            "workspace": workspace,
            "preset": preset,
            "seed": seed,
            "execution": {"executor": executor, "verify": verify},
            "selection": {"n": n, "objective": objective, "per_patient": per_patient},
            "imaging": {"patient_pattern": patient_pattern},
            "privacy": {"case_ids": case_ids},
        },
        config,
        SelectSettings,
    )
    if settings.privacy.case_ids == "salted" and not settings.workspace:
        raise SettingsError("salted case ids need --workspace: only there stands what they mean (`rfss names`)")
    place = out or output_folder(settings.workspace)
    with with_workspace(settings) as complete:
        check_places(complete)
        with command_session(complete.workspace, verbose) as console:
            selection = outcome_of(select_slices, complete, str(place))
    show_selection(console, selection, place)

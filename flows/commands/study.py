"""``rfss study``: tables and plots of many evaluations on the same splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.options import Verbose
from rfss_core.errors import SettingsError
from rfss_core.settings import PresetName, read_mapping


def study(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="YAML files, or names of studies that come with RFSS.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of tables, plots and finished rows.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder with images/ and labels/, and perhaps settings.yaml (as `rfss data convert` writes)."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="--data is as its publisher ships it: acdc, mnms, ... or auto; it is converted."),
    ] = None,
    images: Annotated[str | None, typer.Option("--images", help="Folder or glob of images.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Folder or glob of their label maps.")] = None,
    preset: Annotated[PresetName | None, typer.Option("--preset", help="Default: the study's.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Instead of the study's; several times.")] = None,
    test_patients: Annotated[
        int | None, typer.Option("--test-patients", help="Instead of the study's number.", min=1)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of settings that all rows share (imaging, training, ...)."),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Of all rows. Default: workspace, in the output folder.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would be done and how long it takes; stop.")] = False,
    verbose: Verbose = False,
) -> None:
    """Compare methods on the same splits over seeds: tables, plots, claims."""
    from rfss_core.store.files import Files
    from rfss_core.study import load_study, plan_study

    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out '{out}' is a file; name a folder")
    folder = _converted(data, layout, out)
    if folder is not None and (images is not None or labels is not None):
        raise SettingsError("--data names images and labels already; leave --images and --labels out, or --data")
    given: dict[str, Any] = {
        "images": images if folder is None else str(folder / "images"),
        "labels": labels if folder is None else str(folder / "labels"),
        "preset": preset,
        "seeds": seeds or None,
        "test_patients": test_patients,
        "settings": _shared(folder, config),
    }
    chosen = [load_study(reference, given) for reference in studies]
    from flows.study import place_of

    place = workspace or place_of(Files(out))
    plans = [plan_study(one, place) for one in chosen]
    for plan in plans:
        _check_folders(plan)
    from flows.server import start_prefect_server

    start_prefect_server()
    from flows.endings import outcome_of
    from flows.session import command_session
    from flows.study import prepare
    from flows.study import study as study_flow
    from flows.study_console import show_plan, show_study

    if check:
        from tasks.estimate import estimate

        with command_session(place, verbose) as console:
            estimates = [estimate(plan, outcome_of(prepare, plan.study, str(out), place), Files(out)) for plan in plans]
        for plan, found in zip(plans, estimates, strict=True):
            show_plan(console, plan, found)
        return
    with command_session(place, verbose) as console:
        outcomes = [outcome_of(study_flow, one, str(out), place) for one in chosen]
    for outcome in outcomes:
        show_study(console, outcome)


def _converted(data: Path | None, layout: str | None, out: Path) -> Path | None:
    """Return the folder that holds images/ and labels/: ``data``, or what it was converted to in ``out``."""
    if layout is None or data is None:
        if layout is not None:
            raise SettingsError(f"--layout {layout} says how --data is laid out; give --data FOLDER too")
        return data
    from rfss_core.datasets.layouts.conversion import convert
    from rfss_core.events import EventStream
    from rfss_core.settings.conversion import ConversionSettings

    target = out / "data"
    # What an earlier call converted is found in place.
    convert(data, target, layout, ConversionSettings(), EventStream())
    return target


def _shared(folder: Path | None, config: Path | None) -> dict[str, Any]:
    """Return the settings of the data set's own file and of ``--config``, which wins, part by part."""
    own = folder / "settings.yaml" if folder is not None else None
    found = read_mapping(own, "settings file") if own is not None and own.is_file() else {}
    more = {} if config is None else read_mapping(config, "configuration file", "check --config")
    return {**found, **more}


def _check_folders(plan: Any) -> None:
    """Refuse unusable folders and too few patients in a moment, before Prefect starts."""
    from flows.options import check_places
    from rfss_core.imaging import discover, open_pseudonyms
    from rfss_core.study.check import check_patients

    settings = plan.rows[0].settings
    found = discover(settings.images, settings.labels, settings.imaging, open_pseudonyms(settings.privacy))
    check_patients(plan, [case.patient for case in found.cases if case.label is not None])
    check_places(settings)

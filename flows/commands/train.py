"""``rfss train``: a student on a registered data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Config, Verbose, described
from rfss_core.settings import ArchitectureName, StudentSettings, load_settings


def _help(name: str) -> str:
    return described(name, StudentSettings)


def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=_help("dataset"), show_default=False)],
    network: Annotated[ArchitectureName | None, typer.Option("--network", help=_help("network"))] = None,
    name: Annotated[str | None, typer.Option("--name", help=_help("name"))] = None,
    workspace: Annotated[str | None, typer.Option("--workspace", help=_help("registry"))] = None,
    images: Annotated[str | None, typer.Option("--images", help=_help("images"))] = None,
    labels: Annotated[str | None, typer.Option("--labels", help=_help("labels"))] = None,
    decisions: Annotated[list[str] | None, typer.Option("--decision", help=_help("decisions"))] = None,
    weighted: Annotated[bool | None, typer.Option("--weighted/--unweighted", help=_help("weighted"))] = None,
    ignore: Annotated[float | None, typer.Option("--ignore", help=_help("ignore"))] = None,
    test_share: Annotated[float | None, typer.Option("--test-share", help=_help("test_share"))] = None,
    compare: Annotated[bool | None, typer.Option("--compare/--no-compare", help=_help("compare"))] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps at most.")] = None,
    device: Annotated[str | None, typer.Option("--device", help=_help("device"))] = None,
    seed: Annotated[int | None, typer.Option("--seed", help=_help("seed"))] = None,
    out: Annotated[str | None, typer.Option("--out", help=_help("folder"))] = None,
    config: Config = None,
    verbose: Verbose = False,
) -> None:
    """Train a student on a registered data set plus the experts' labels, test it, and register it."""
    settings = load_settings(
        {
            "dataset": dataset,
            "registry": workspace,
            "name": name,
            "network": network,
            "images": images,
            "labels": labels,
            "decisions": decisions or None,
            "weighted": weighted,
            "ignore": ignore,
            "test_share": test_share,
            "compare": compare,
            "training": {"steps": steps},
            "device": device,
            "seed": seed,
            "folder": out,
        },
        config,
        StudentSettings,
    )
    # What is wrong with the names is said before Prefect starts.
    from rfss_core.datasets import load
    from rfss_core.weights import resolve_device

    resolve_device(settings.device)
    found = load(settings.dataset, registry=settings.registry, verify="none", log_input=False)
    found.cases(settings.decisions)
    from flows.server import start_prefect_server

    start_prefect_server()
    from flows.endings import outcome_of
    from flows.session import command_session
    from flows.train_console import show_student
    from flows.train_student import train_student

    home = found.origin.workspace
    with command_session(home.url if home is not None else str(Path.cwd()), verbose) as console:
        result = outcome_of(train_student, settings)
    show_student(console, result)

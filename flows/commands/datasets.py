"""``rfss datasets``, ``promote``, ``demote``, ``rollback``, ``lineage``: the registry of data sets."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

Registry = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        help="Workspace whose embedded registry is meant, or an MLflow tracking URI. "
        "Default: MLFLOW_TRACKING_URI, then RFSS_WORKSPACE, then the current folder.",
    ),
]
Name = Annotated[str, typer.Argument(help="Name of the data set.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def datasets(
    name: Annotated[str | None, typer.Argument(help="Show all versions of this one. Default: all data sets.")] = None,
    workspace: Registry = None,
    as_json: AsJson = False,
) -> None:
    """List the registered data sets: versions, aliases, status, held-out Dice, digest, date."""
    import json

    from flows.registry_console import listing, show_versions
    from rfss_core.datasets.reference import DatasetReference
    from tasks.registry import DataRegistry
    from tasks.tracking import registry_uri

    registry = DataRegistry(registry_uri(workspace))
    names = registry.names() if name is None else [DatasetReference.parse(name).name]
    found = {each: registry.versions(each) for each in names}
    if as_json:
        typer.echo(json.dumps(listing(found)))
    else:
        show_versions(Console(), found, registry.uri)


def promote(
    reference: Annotated[
        str,
        typer.Argument(help="NAME (its candidate), NAME@ALIAS or NAME/VERSION.", show_default=False),
    ],
    workspace: Registry = None,
) -> None:
    """Make a version the champion: the one that training jobs take. A version that failed its gate is refused."""
    from flows.registry_console import show_promotion
    from rfss_core.datasets.reference import DatasetReference
    from tasks.promotion import promote as make_champion
    from tasks.registry import DataRegistry
    from tasks.tracking import registry_uri

    named = DatasetReference.parse(reference)
    show_promotion(Console(), make_champion(DataRegistry(registry_uri(workspace)), named))


def demote(name: Name, workspace: Registry = None) -> None:
    """Take the alias champion away; no version is the champion then."""
    from flows.registry_console import show_promotion
    from rfss_core.datasets.reference import DatasetReference
    from tasks.promotion import demote as take_away
    from tasks.registry import DataRegistry
    from tasks.tracking import registry_uri

    plain = DatasetReference.parse(name).name
    show_promotion(Console(), take_away(DataRegistry(registry_uri(workspace)), plain))


def rollback(name: Name, workspace: Registry = None) -> None:
    """Make the version champion again that was before the present one."""
    from flows.registry_console import show_promotion
    from rfss_core.datasets.reference import DatasetReference
    from tasks.promotion import rollback as go_back
    from tasks.registry import DataRegistry
    from tasks.tracking import registry_uri

    plain = DatasetReference.parse(name).name
    show_promotion(Console(), go_back(DataRegistry(registry_uri(workspace)), plain))


def lineage(
    reference: Annotated[
        str,
        typer.Argument(
            help="Data set or student (NAME@ALIAS, NAME/VERSION), support:DIGEST or run:ID.", show_default=False
        ),
    ],
    workspace: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Show what something was made from and what was made from it: support set, run, data set, student."""
    import json

    from flows.registry_console import show_lineage
    from tasks.lineage import trace
    from tasks.registry import DataRegistry
    from tasks.tracking import registry_uri

    found = trace(DataRegistry(registry_uri(workspace)), reference)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        show_lineage(Console(), found)

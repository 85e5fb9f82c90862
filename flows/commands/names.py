"""``rfss names``: what the salted case ids of a workspace stand for."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rfss_core.imaging import PrivateName


def names(
    workspace: Annotated[str, typer.Argument(metavar="DIR", help="Workspace with salted case ids.")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Cases, patients or files. Default: all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV file to write, for its owner's eyes alone, instead of a table.")
    ] = None,
) -> None:
    """Tell which files and patients the salted case ids of a workspace stand for."""
    from rich.console import Console
    from rich.table import Table

    from rfss_core.errors import InputError
    from rfss_core.imaging import PrivateName
    from rfss_core.store import Workspace
    from rfss_core.store.private import private_names

    known = private_names(Workspace.open(workspace, create=False).files)
    chosen = list(known.values())
    if ids:
        unknown = [one for one in ids if not any(_is(entry, one) for entry in chosen)]
        if unknown:
            raise InputError(f"workspace '{workspace}' knows no case, patient or file '{unknown[0]}'; check the id")
        chosen = [entry for entry in chosen if any(_is(entry, one) for one in ids)]
    columns = [field.name for field in dataclasses.fields(PrivateName)]
    rows = [[str(getattr(entry, column)) for column in columns] for entry in chosen]
    console = Console(highlight=False)
    if out is not None:
        try:
            handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise InputError(f"'{out}' cannot be written ({error.strerror}); name another file") from error
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            # Of a file that was there before.
            os.fchmod(stream.fileno(), 0o600)
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([columns, *rows])
        console.print(f"{len(rows)} names in '{out}'; keep it from others", soft_wrap=True)
        return
    table = Table(title=f"{len(rows)} names", title_justify="left")
    for column in columns[:5]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row[:5])
    console.print(table)


def _is(entry: PrivateName, wanted: str) -> bool:
    return wanted in (entry.id, entry.id.partition("_")[0])

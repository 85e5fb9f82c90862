"""``rfss data``: public data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def data_fetch(
    name: Annotated[str, typer.Argument(help="Data set: hippocampus.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("data"),
) -> None:
    """Download a public data set and arrange it as images/ and labels/."""
    from rfss_core.datasets.fetch import fetch_dataset

    folder = fetch_dataset(name, out)
    Console().print(
        f"{name} is in {folder}\nnext: rfss label {folder}/images --labels {folder}/labels --workspace work",
        highlight=False,
    )

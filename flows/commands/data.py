"""``rfss data``: public data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.options import described
from rfss_core.settings.conversion import ConversionSettings

_LAYOUT_HELP = "acdc, mnms, btcv, flare22, refuge, busi, or auto: what the folder's files show."


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


def data_convert(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help=_LAYOUT_HELP)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The data set, as its publisher ships it.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="Of cine series: all time points, not only the annotated ones.")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help=described("link", ConversionSettings))] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help=described("keep_going", ConversionSettings))] = False,
) -> None:
    """Convert a public data set's folder, as its publisher ships it, to images/, labels/ and settings.yaml."""
    from flows.console import show_conversion
    from rfss_core.datasets.layouts.conversion import convert
    from rfss_core.events import EventStream
    from tasks.progress import TerminalProgress

    settings = ConversionSettings(frames="all" if all_frames else "annotated", link=link, keep_going=keep_going)
    console, events = Console(), EventStream()
    with TerminalProgress(console) as bars:
        events.subscribe(bars)
        result = convert(folder, out, layout, settings, events)
    for problem in list(result.left_out.values())[:10]:
        console.print(f"[yellow]left out:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    show_conversion(console, result)

"""``rfss export``: a data set for others' tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.commands.datasets import Registry
from flows.options import described
from rfss_core.settings import ExportFormat, ExportSettings


def export(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Workspace of a finished run (its latest data set), or a registered NAME@ALIAS or NAME/VERSION.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; new, empty, or of the same export.")],
    format: Annotated[  # noqa: A002 - the option's name
        ExportFormat, typer.Option("--format", help=described("format", ExportSettings))
    ] = "nifti",
    decision: Annotated[
        list[str] | None,
        typer.Option("--decision", help="accept, review or reject; may be repeated. Default: accept and review."),
    ] = None,
    ignore: Annotated[
        float | None,
        typer.Option("--ignore", help="Voxels of at least this uncertainty (above 0 to 1) become class `ignore`."),
    ] = None,
    with_expert: Annotated[bool, typer.Option("--with-expert", help=described("with_expert", ExportSettings))] = False,
    held_out_as_test: Annotated[
        bool, typer.Option("--held-out-as-test", help=described("held_out_as_test", ExportSettings))
    ] = False,
    dataset_id: Annotated[
        int | None, typer.Option("--dataset-id", help=described("dataset_id", ExportSettings))
    ] = None,
    original_names: Annotated[
        bool, typer.Option("--original-names", help=described("original_names", ExportSettings))
    ] = False,
    images: Annotated[
        str | None,
        typer.Option("--images", help="dicom-seg: folder of the series that were labelled. Default: where they were."),
    ] = None,
    workspace: Registry = None,
    concepts: Annotated[
        Path | None,
        typer.Option("--concepts", help="dicom-seg: YAML file, class name to [code value, coding scheme, meaning]."),
    ] = None,
) -> None:
    """Write the labelled data set in the layout of another tool; started again, it goes on where it stopped."""
    from flows.console import show_export
    from rfss_core.datasets.reference import is_folder
    from rfss_core.events import EventStream
    from tasks.export import export_dataset, export_settings
    from tasks.progress import TerminalProgress

    settings = export_settings(
        {
            "format": format,
            "decisions": decision,
            "ignore": ignore,
            "with_expert": with_expert,
            "held_out_as_test": held_out_as_test,
            "dataset_id": dataset_id,
            "original_names": original_names,
        },
        concepts,
    )
    registry = None
    if not is_folder(reference) and ("@" in reference or "/" in reference):
        from tasks.tracking import registry_uri

        registry = registry_uri(workspace)
    console = Console()
    with TerminalProgress(console) as bars:
        events = EventStream([bars])
        report = export_dataset(reference, out, settings, images=images, registry=registry, events=events)
    show_export(console, report)

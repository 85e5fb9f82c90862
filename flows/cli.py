"""The command line: ``rfss`` (docs/architecture.md holds its contract)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

import tasks  # noqa: F401 - sets the environment's defaults before Prefect and MLflow are imported
from rfss_core import __version__
from rfss_core.errors import GateError, InputError, ModelError, RfssError, SettingsError
from rfss_core.settings import (
    BASELINES,
    LabelSettings,
    Objective,
    PresetName,
    SegmenterName,
    SelectionSettings,
    SelectSettings,
    Strategy,
    load_settings,
)

DONE, FAILED, BAD_INPUT, GATE_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="rfss",
    help="Label thousands of medical images from a few dozen labelled ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Public data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def check_places(settings: LabelSettings) -> None:
    """Refuse unusable folders in a moment, before Prefect starts; begin the workspace, where the log will lie."""
    from rfss_core.imaging import discover
    from rfss_core.store import Workspace

    discover(settings.images, settings.labels, settings.imaging)
    Workspace.open(settings.workspace)


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


def _described(name: str, model: Any = LabelSettings) -> str:
    return str(model.model_fields[name].description)


Images = Annotated[str, typer.Argument(metavar="IMAGES", help=_described("images"), show_default=False)]
Labels = Annotated[str | None, typer.Option("--labels", help=_described("labels"), show_default=False)]
WorkspaceUrl = Annotated[str | None, typer.Option("--workspace", help=_described("workspace"), show_default=False)]
Preset = Annotated[PresetName | None, typer.Option("--preset", help=_described("preset") + " Default: tiny.")]
K = Annotated[int | None, typer.Option("--k", help=_described("k"))]
HeldOut = Annotated[float | None, typer.Option("--held-out", help=_described("held_out") + " Default: 0.3.")]
ExecutorName = Annotated[
    str | None, typer.Option("--executor", help="inline, local, or a scheduler's tcp:// address. Default: inline.")
]
MinDice = Annotated[float | None, typer.Option("--min-dice", help="Gate on the held-out mean Dice. Default: 0.7.")]
DatasetName = Annotated[str | None, typer.Option("--dataset", help=_described("dataset"))]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; options given here win.")]
Seed = Annotated[int | None, typer.Option("--seed", help=_described("seed") + " Default: 0.")]
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
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every chunk.")]


@app.command()
def label(
    images: Images = "",
    labels: Labels = None,
    workspace: WorkspaceUrl = None,
    preset: Preset = None,
    k: K = None,
    held_out: HeldOut = None,
    executor: ExecutorName = None,
    min_dice: MinDice = None,
    dataset: DatasetName = None,
    config: Config = None,
    seed: Seed = None,
    strategy: StrategyName = None,
    filters: Filters = None,
    match: Match = None,
    metadata: Metadata = None,
    segmenter: SegmenterOption = None,
    support_slices: SupportSlices = None,
    patient_pattern: PatientPattern = None,
    verbose: Verbose = False,
) -> None:
    """Label the images that have no label, measure the quality on held-out patients, register the data set."""
    settings = load_settings(
        {
            "images": images or None,
            "labels": labels,
            "workspace": workspace,
            "preset": preset,
            "k": k,
            "held_out": held_out,
            "dataset": dataset,
            "seed": seed,
            "execution": {"executor": executor},
            "quality": {"min_dice": min_dice},
            "retrieval": {
                "strategy": strategy,
                "support_slices": support_slices,
                "metadata": metadata,
                "filter": filter_of(filters, match),
            },
            "segmentation": {"segmenter": segmenter},
            "imaging": {"patient_pattern": patient_pattern},
        },
        config,
    )
    if settings.segmentation.segmenter in BASELINES:
        from rfss_core.segmentation.factory import baseline_error

        raise baseline_error(settings.segmentation.segmenter)
    check_places(settings)
    from flows.console import show_summary
    from flows.label_dataset import label_dataset
    from flows.session import command_session
    from tasks.summary import read_summary

    gate: GateError | None = None
    with command_session(settings.workspace, verbose) as console:
        try:
            summary = label_dataset(settings)
        except GateError as error:
            gate, summary = error, read_summary(settings.workspace)
    show_summary(console, summary)
    if gate is not None:
        raise typer.Exit(GATE_FAILED)


@app.command()
def evaluate(
    images: Annotated[str, typer.Option("--images", help=_described("images"))],
    labels: Annotated[str, typer.Option("--labels", help=_described("labels"))],
    out: Annotated[Path, typer.Option("--out", help="JSON file to write.")],
    support_slices: Annotated[int, typer.Option("--support-slices", help="Size of the support set.", min=1)] = 50,
    preset: Annotated[PresetName, typer.Option("--preset", help=_described("preset"))] = "tiny",
    k: K = None,
    strategy: Annotated[Strategy, typer.Option("--strategy", help="How support slices are chosen.")] = "dino",
    filters: Filters = None,
    match: Match = None,
    metadata: Metadata = None,
    test_patients: Annotated[
        int | None, typer.Option("--test-patients", help="Patients to measure on. Default: 30 %.", min=1)
    ] = None,
    support_patients: Annotated[
        int | None,
        typer.Option("--support-patients", help="Patients the support set comes from. Default: all others.", min=1),
    ] = None,
    segmenter: Annotated[SegmenterName, typer.Option("--segmenter", help="What segments.")] = "sam2-memory",
    points: Annotated[
        str | None, typer.Option("--points", metavar="POSITIVE[,NEGATIVE]", help="Of sam2-points: 1, 2, 1,1 or 2,2.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split and of random retrieval.", min=0)] = 0,
    executor: Annotated[str, typer.Option("--executor", help="inline, local, or a scheduler's address.")] = "inline",
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Keep embeddings and masks here. Default: a temporary folder.")
    ] = None,
    config: Config = None,
    patient_pattern: PatientPattern = None,
    verbose: Verbose = False,
) -> None:
    """Measure Dice and HD95 on labelled patients that are kept out of the support set."""
    import tempfile

    from flows.console import show_evaluation
    from flows.evaluate import evaluate as evaluate_flow
    from flows.session import command_session

    with tempfile.TemporaryDirectory(prefix="rfss-evaluate-") as temporary:
        settings = load_settings(
            {
                "images": images,
                "labels": labels,
                "workspace": workspace or temporary,
                "preset": preset,
                "k": k,
                "seed": seed,
                "execution": {"executor": executor},
                "retrieval": {
                    "strategy": strategy,
                    "support_slices": support_slices,
                    "metadata": metadata,
                    "filter": filter_of(filters, match),
                },
                "segmentation": {"segmenter": segmenter, "points": points},
                "imaging": {"patient_pattern": patient_pattern},
            },
            config,
        )
        check_places(settings)
        with command_session(settings.workspace, verbose) as console:
            result = evaluate_flow(settings, test_patients, support_patients)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    show_evaluation(console, result, out)


@app.command()
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
        int | None, typer.Option("--per-patient", help=_described("per_patient", SelectionSettings))
    ] = None,
    executor: ExecutorName = None,
    config: Config = None,
    seed: Seed = None,
    patient_pattern: PatientPattern = None,
    verbose: Verbose = False,
) -> None:
    """Choose the slices to label next: those that, once labelled, leave the fewest others without a similar one."""
    from flows.console import show_selection
    from flows.select_slices import output_folder, select_slices, with_workspace
    from flows.session import command_session

    settings = load_settings(
        {
            "images": images or None,
            "labels": labels,
            "workspace": workspace,
            "preset": preset,
            "seed": seed,
            "execution": {"executor": executor},
            "selection": {"n": n, "objective": objective, "per_patient": per_patient},
            "imaging": {"patient_pattern": patient_pattern},
        },
        config,
        SelectSettings,
    )
    place = out or output_folder(settings.workspace)
    with with_workspace(settings) as complete:
        check_places(complete)
        with command_session(complete.workspace, verbose) as console:
            selection = select_slices(complete, str(place))
    show_selection(console, selection, place)


@app.command()
def status(workspace: Annotated[str, typer.Argument(help="Workspace of a run.")]) -> None:
    """Show how far a run is: stages, chunks done, cases set aside; also while it is going on."""
    from flows.console import show_status
    from tasks.status import read_status

    show_status(Console(), read_status(workspace))


@app.command()
def export(
    workspace: Annotated[str, typer.Argument(help="Workspace of a finished run.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must be new or empty.")],
    format: Annotated[str, typer.Option("--format", help="nifti")] = "nifti",  # noqa: A002 - the option's name
) -> None:
    """Copy a labelled data set out of the workspace."""
    from tasks.export import export_dataset

    count = export_dataset(workspace, format, out)
    Console().print(f"{count} cases exported to {out}", highlight=False)


@app.command()
def doctor() -> None:
    """Check the installation: versions, models, devices, executors."""
    from flows.doctor import examine

    if not examine(Console()):
        raise typer.Exit(FAILED)


@data_app.command("fetch")
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


def _version(value: bool) -> None:
    if value:
        typer.echo(f"rfss {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; turn errors into one line and an exit code.

    Args:
        arguments: as on the command line, without the program's name; default: ``sys.argv``.
    """
    console = Console(stderr=True)

    def refuse(error: BaseException, code: int) -> int:
        console.print(f"[red]rfss:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return code

    try:
        code = typer.main.get_command(app).main(arguments, prog_name="rfss", standalone_mode=False) or DONE
    except TyperException as error:
        error.show()  # type: ignore[attr-defined]
        code = BAD_INPUT
    except (InputError, ModelError) as error:
        code = refuse(error, BAD_INPUT)
    except RfssError as error:
        code = refuse(error, FAILED)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        logging.getLogger("rfss").exception("unexpected error")
        code = refuse(RuntimeError(f"unexpected {type(error).__name__}: {error}; run.log has the details"), FAILED)
    if code == INTERRUPTED:
        console.print("[yellow]rfss:[/] stopped; start the same command again to go on where it stopped")
    sys.exit(code)


if __name__ == "__main__":
    main()

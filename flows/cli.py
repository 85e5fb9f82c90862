"""The command line: ``rfss`` (docs/architecture.md holds its contract)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.main
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

import tasks  # noqa: F401 - sets the environment's defaults before Prefect and MLflow are imported
from flows.commands.automations import automations
from flows.commands.data import data_convert, data_fetch
from flows.commands.datasets import datasets, demote, lineage, promote, rollback
from flows.commands.doctor import doctor
from flows.commands.evaluate import evaluate
from flows.commands.export import export
from flows.commands.label import label
from flows.commands.names import names
from flows.commands.review import review_export, review_import
from flows.commands.secure import secure
from flows.commands.select import select
from flows.commands.serve import serve
from flows.commands.status import status
from flows.commands.study import study
from flows.commands.train import train
from flows.exit_codes import BAD_INPUT, DONE, FAILED, INTERRUPTED
from flows.interrupt import swallowed_interrupts_return
from rfss_core import __version__
from rfss_core.errors import InputError, ModelError, RfssError
from rfss_core.settings import LogFormat, LogLevel, LogSettings
from rfss_core.settings.observability import FILE_VARIABLE, FORMAT_VARIABLE, LEVEL_VARIABLE
from tasks.logs import as_json, log_settings, say

app = typer.Typer(
    name="rfss",
    help="Label thousands of medical images from a few dozen labelled ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    label,
    evaluate,
    study,
    select,
    status,
    names,
    export,
    datasets,
    promote,
    demote,
    rollback,
    lineage,
    train,
    doctor,
    serve,
    secure,
    automations,
):
    app.command()(command)
data_app = typer.Typer(help="Public data sets.", no_args_is_help=True)
data_app.command("fetch")(data_fetch)
data_app.command("convert")(data_convert)
app.add_typer(data_app, name="data")
review_app = typer.Typer(help="Correct pseudo-labels by hand, and let them serve.", no_args_is_help=True)
review_app.command("export")(review_export)
review_app.command("import")(review_import)
app.add_typer(review_app, name="review")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"rfss {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(envvar=FORMAT_VARIABLE, help="json: standard error gets one JSON object a line, and no bars."),
    ] = "text",
    log_level: Annotated[
        LogLevel, typer.Option(envvar=LEVEL_VARIABLE, help="The least important lines that are written.")
    ] = "info",
    log_file: Annotated[
        Path | None, typer.Option(envvar=FILE_VARIABLE, help="File that the log is appended to besides.")
    ] = None,
) -> None:
    log_settings.set(LogSettings(format=log_format, level=log_level, file=log_file))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; turn errors into one line and an exit code.

    Args:
        arguments: as on the command line, without the program's name; default: ``sys.argv``.
    """
    console = Console(stderr=True)
    before = log_settings.get()

    def refuse(text: object, code: int, level: int = logging.ERROR, colour: str = "red") -> int:
        if as_json():
            say(str(text), level, event="refused", code=code)
        else:
            console.print(f"[{colour}]rfss:[/] {escape(str(text))}", highlight=False, soft_wrap=True)
        return code

    try:
        with swallowed_interrupts_return():
            code = typer.main.get_command(app).main(arguments, prog_name="rfss", standalone_mode=False) or DONE
    except TyperException as error:
        code = BAD_INPUT
        if as_json():
            refuse(error.format_message(), code)
        else:
            error.show()  # type: ignore[attr-defined]
    except (InputError, ModelError) as error:
        code = refuse(error, BAD_INPUT)
    except RfssError as error:
        code = refuse(error, FAILED)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        logging.getLogger("rfss").exception("unexpected error")
        code = refuse(f"unexpected {type(error).__name__}: {error}; run.log has the details", FAILED)
    if code == INTERRUPTED:
        refuse("stopped; start the same command again to go on where it stopped", code, logging.WARNING, "yellow")
    log_settings.set(before)
    sys.exit(code)


if __name__ == "__main__":
    main()

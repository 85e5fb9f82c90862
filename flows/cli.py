"""The command line: ``rfss`` (docs/architecture.md holds its contract)."""

from __future__ import annotations

import logging
import sys
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
from rfss_core import __version__
from rfss_core.errors import InputError, ModelError, RfssError

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

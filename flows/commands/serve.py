"""``rfss serve``: Prefect, MLflow and the flows' deployments on this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.exit_codes import FAILED


def serve(
    home: Annotated[
        Path | None, typer.Option(help="Folder of databases, artifacts and logs. Default: RFSS_HOME, else ~/.rfss.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a password.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server and UI.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow's server and UI.")] = 5000,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the metrics of all runs, for Prometheus; 0: a free one."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=64, help="Runs at once.")] = 2,
    nightly: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings: label what is new in its images, by the schedule of --cron."),
    ] = None,
    cron: Annotated[str, typer.Option(help="When the nightly run starts.")] = "0 2 * * *",
    timezone: Annotated[
        str | None, typer.Option(help="IANA name of the clock of --cron. Default: this machine's, else UTC.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            envvar="RFSS_WEBHOOK",
            help="URL that is told of failed gates, drift and failed runs (Slack, Teams, any JSON hook).",
        ),
    ] = None,
    automations: Annotated[
        bool, typer.Option(help="Set up the automations: promoted data set trains the student, alerts, zombie runs.")
    ] = True,
    secure: Annotated[
        Path | None,
        typer.Option(help="Folder of `rfss secure`: passwords for both servers. Default: secure/ in the home."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the service of this folder is ready.")
    ] = False,
) -> None:
    """Start (or find) Prefect and MLflow on this machine, register the deployments, and run what is asked of them."""
    from rich.console import Console

    from flows.service.home import Home

    folder = Home(home)
    guarded = use_passwords(secure, folder.folder)

    # Prefect reads its settings when it is imported.
    from flows.service.deployments import Nightly
    from rfss_core.settings import load_settings

    console = Console(highlight=False, soft_wrap=True)
    if check:
        from flows.service.service import is_ready

        addresses = folder.read()
        ready = is_ready(addresses)
        console.print(
            f"{'ready' if ready else 'not ready'}: {addresses.prefect_ui} (Prefect), {addresses.mlflow} (MLflow)"
        )
        raise typer.Exit(0 if ready else FAILED)
    parameters: dict[str, Any] | None = None
    if nightly is not None:
        settings = load_settings({}, nightly)
        parameters = {"settings": settings.model_dump(mode="json", exclude_unset=True)}
    plan = Nightly(cron, timezone or local_timezone(), parameters)
    plan.schedule(active=False)
    from flows.service.service import Service, ServiceSettings, stop_signals

    with stop_signals() as told:
        began = time.monotonic()
        console.print(f"starting in '{folder.folder}' (logs: '{folder.logs}') ...")
        service = Service(ServiceSettings(folder, host, port, mlflow_port, limit, plan, metrics_port, guarded))
        try:
            where = service.addresses
            if automations:
                _automations(console, where.prefect_api, webhook)
            for name, address in (("Prefect", where.prefect_ui), ("MLflow", where.mlflow)):
                note = " (was running)" if name in service.found else ""
                console.print(f"{name:<12} {address}{note}")
            if where.metrics is not None:
                console.print(f"{'Metrics':<12} {where.metrics}")
            console.print(f"{'Deployments':<12} {', '.join(where.deployments)}")
            when = (
                f"{plan.cron} ({plan.timezone})" if parameters else "switched off; give --nightly, or set it in the UI"
            )
            console.print(f"{'Nightly run':<12} {when}")
            console.print(f"ready after {time.monotonic() - began:.0f} s; Ctrl-C stops it")
            service.wait(told)
        finally:
            console.print("stopping ...")
            service.stop()
    console.print("stopped; databases and logs stay where they are")


def use_passwords(secure: Path | None, home: Path) -> bool:
    """Put the passwords and certificates of a folder of `rfss secure` into the environment, and say whether there are.

    Args:
        secure: the folder; None: ``secure`` in the home, where that is one.
        home: of the service.

    Raises:
        InputNotFoundError: the folder that was named holds no passwords.
        SettingsError: others may read them, or MLflow's extra for passwords is not installed.
    """
    from importlib.util import find_spec

    from flows.secure.folder import SecureFolder
    from rfss_core.errors import SettingsError

    place = SecureFolder(secure or home / "secure")
    if secure is None and not place.exists:
        return False
    os.environ.update(place.environment())
    if find_spec("flask_wtf") is None:
        raise SettingsError("MLflow's passwords need Flask-WTF; run `pip install 'rfss[auth]'`")
    return True


def local_timezone() -> str:
    """Return the IANA name of this machine's time zone; UTC where it does not say."""
    if name := os.environ.get("TZ", "").lstrip(":"):
        return name
    link = Path("/etc/localtime")
    if link.is_symlink() and "zoneinfo/" in (target := str(link.resolve())):
        return target.split("zoneinfo/", 1)[1]
    return "UTC"


def _automations(console: Any, api: str, webhook: str | None) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from rich.markup import escape

    from flows.service.automations import set_up
    from rfss_core.errors import ExecutionError

    with temporary_settings({PREFECT_API_URL: api}):
        try:
            lines = set_up(webhook)
        except ExecutionError as error:
            # Runs can be labelled without them.
            lines = [f"[yellow]none set up: {escape(str(error))}[/]"]
        for line in lines:
            console.print(f"{'Automation':<12} {line}")

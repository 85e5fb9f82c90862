"""One machine's service: a Prefect server, an MLflow server, and a runner of the deployments."""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.secure.exposure import is_loopback
from flows.service.deployments import SERVED, Nightly
from flows.service.home import Addresses, Home
from flows.service.metrics import served_metrics
from flows.service.processes import Guarded, asks_for_password, find, mlflow_answers, prefect_answers
from flows.service.runner import RunnerOptions
from rfss_core.errors import ExecutionError, PortTakenError, ServerAccessError, SettingsError
from rfss_core.settings.observability import FOLDER_VARIABLE

START_S = 300.0


@dataclass(frozen=True)
class ServiceSettings:
    """What ``rfss serve`` was asked for."""

    home: Home
    host: str = "127.0.0.1"
    port: int = 4200
    mlflow_port: int = 5000
    limit: int = 2
    """Runs at once."""
    nightly: Nightly = field(default_factory=Nightly)
    metrics_port: int | None = None
    """Port of the metrics of all runs; None: they are not served."""
    secure: bool = False
    """The environment holds passwords of both servers (:mod:`flows.secure.folder`)."""


class Service:
    """The running service.

    Args:
        settings: what was asked for.

    Raises:
        InputError: another service uses the folder.
        PortTakenError: a port is taken by something else.
        ExecutionError: a process does not start.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._processes: list[Guarded] = []
        self.found: list[str] = []
        """Names of the servers that were running already."""
        self._stack.enter_context(settings.home.held())
        try:
            self.addresses = self._start()
        except BaseException:
            self.stop()
            raise

    def wait(self, told: threading.Event) -> None:
        """Wait until told to stop.

        Raises:
            ExecutionError: one of the processes ended by itself.
        """
        while not told.wait(0.5):
            for process in self._processes:
                if process.ended is not None:
                    raise ExecutionError(
                        f"{process.name} ended by itself (code {process.ended}); '{process.log}' says why: "
                        f"{process.last_line()}"
                    )

    def stop(self) -> None:
        """Stop what was started, the runner first, so that runs can tell the servers that they were stopped."""
        while self._processes:
            self._processes.pop().stop()
        self._stack.close()

    def _start(self) -> Addresses:
        settings = self._settings
        settings.nightly.schedule(active=False)
        mlflow, ui = _address(settings.host, settings.mlflow_port), _address(settings.host, settings.port)
        api = f"{ui}/api"
        if not (is_loopback(settings.host) or settings.secure):
            raise SettingsError(
                f"--host {settings.host} would let everyone in that network start runs on this machine and read "
                "MLflow: make passwords with `rfss secure DIR` and give --secure DIR, or stay on 127.0.0.1"
            )
        metrics = None
        if settings.metrics_port is not None:
            served = served_metrics(settings.home.metrics, settings.host, settings.metrics_port)
            metrics = self._stack.enter_context(served)
        servers = []
        if _prefect_runs(settings.host, settings.port, api):
            self.found.append("Prefect")
        else:
            servers.append((self._prefect(api), lambda: prefect_answers(api)))
        if find(settings.host, settings.mlflow_port, "MLflow", "--mlflow-port", lambda: mlflow_answers(mlflow)):
            self.found.append("MLflow")
        else:
            servers.append((self._mlflow(), lambda: mlflow_answers(mlflow)))
        # Found ones may have been started by somebody else, in another way.
        for name, url in (("Prefect", f"{api}/admin/version"), ("MLflow", f"{mlflow}/version")):
            if settings.secure and name in self.found and not asks_for_password(url):
                raise SettingsError(
                    f"the {name} server that runs at {url.rpartition('/')[0]} asks for no password; stop it, or give "
                    "another port"
                )
        for process, ready in servers:
            process.wait_until(ready, START_S)
        runner = f"rfss-{uuid.uuid4().hex[:8]}"
        self._runner(api, mlflow, runner)
        addresses = Addresses(
            pid=os.getpid(),
            prefect_api=api,
            prefect_ui=ui,
            mlflow=mlflow,
            runner=runner,
            deployments=[f"{each.load().name}/{each.name}" for each in SERVED],
            metrics=metrics,
        )
        self._processes[-1].wait_until(lambda: is_ready(addresses), START_S)
        settings.home.write(addresses)
        return addresses

    def _prefect(self, api: str) -> Guarded:
        settings = self._settings
        command = ["-m", "prefect", "server", "start", "--host", settings.host, "--port", str(settings.port)]
        environment = {**self._prefect_home(), "PREFECT_API_URL": api, "PREFECT_UI_API_URL": api}
        if settings.metrics_port is not None:
            # Its own, at /api/metrics.
            environment["PREFECT_SERVER_METRICS_ENABLED"] = "true"
        return self._guarded("prefect", command, environment)

    def _mlflow(self) -> Guarded:
        settings, folder = self._settings, self._settings.home.folder
        command = [
            "-m", "mlflow", "server", "--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination", (folder / "mlflow-artifacts").as_uri(),
            *(["--app-name", "basic-auth"] if self._settings.secure else []),
        ]  # fmt: skip
        # Its runner of jobs is six more processes that poll for ever; RFSS gives it none.
        jobs = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
        return self._guarded("mlflow", command, {jobs: os.environ.get(jobs, "false")})

    def _runner(self, api: str, mlflow: str, name: str) -> Guarded:
        nightly = self._settings.nightly
        options = RunnerOptions(
            cron=nightly.cron,
            timezone=nightly.timezone,
            parameters=nightly.parameters,
            limit=self._settings.limit,
            name=name,
        )
        command = ["-m", "flows.service.runner", options.model_dump_json()]
        environment = {**self._prefect_home(), "PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": mlflow}
        # The shortest that Prefect allows: the automation for zombies waits for three of them.
        environment |= {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")}
        if self._settings.metrics_port is not None:
            environment[FOLDER_VARIABLE] = str(self._settings.home.metrics)
        return self._guarded("runner", command, environment)

    def _prefect_home(self) -> dict[str, str]:
        return {"PREFECT_HOME": str(self._settings.home.folder / "prefect")}

    def _guarded(self, name: str, command: list[str], environment: dict[str, str]) -> Guarded:
        process = Guarded(name, [sys.executable, *command], environment, self._settings.home.logs)
        self._processes.append(process)
        return process


def _prefect_runs(host: str, port: int, api: str) -> bool:
    """Return whether the Prefect server runs already.

    Raises:
        ServerAccessError: one does, and it refuses our credentials.
        PortTakenError: something else listens there.
    """
    try:
        return find(host, port, "Prefect", "--port", lambda: prefect_answers(api))
    except PortTakenError:
        if not asks_for_password(f"{api}/admin/version"):
            raise
        raise ServerAccessError(
            f"the Prefect server at '{api}' asks for a password; give --secure the folder of `rfss secure` that holds "
            "it, or set PREFECT_API_AUTH_STRING to its user:password"
        ) from None


def is_ready(addresses: Addresses) -> bool:
    """Return whether both servers answer and every deployment is registered and polled for runs."""
    if not (prefect_answers(addresses.prefect_api) and mlflow_answers(addresses.mlflow)):
        return False
    with temporary_settings({PREFECT_API_URL: addresses.prefect_api}), get_client(sync_client=True) as client:
        found: dict[str, Any] = {}
        for deployment in client.read_deployments():
            flow = client.read_flow(deployment.flow_id)
            found[f"{flow.name}/{deployment.name}"] = deployment.status
    return all(found.get(name) == "READY" for name in addresses.deployments)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set."""
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _address(host: str, port: int) -> str:
    # Who listens everywhere is reached here too.
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"

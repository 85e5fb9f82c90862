"""The deployments that ``rfss serve`` offers: :data:`SERVED` is the list; a flow more is an entry more."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

from rfss_core.errors import SettingsError

NIGHTLY = "nightly"
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
"""A run that would have to wait is cancelled: runs that were missed do not pile up."""


@dataclass(frozen=True)
class Served:
    """One deployment."""

    name: str
    module: str
    flow: str
    """Name of the flow's function in the module."""
    description: str
    scheduled: bool = False
    """Has the nightly schedule."""

    def load(self) -> Flow[..., Any]:
        """Import the flow."""
        found: Flow[..., Any] = getattr(importlib.import_module(self.module), self.flow)
        return found


SERVED = (
    Served(
        "label-dataset",
        "flows.label_dataset",
        "label_dataset",
        "Label the images that have no label, measure the quality on held-out patients, register the data set.",
    ),
    Served(
        NIGHTLY,
        "flows.label_dataset",
        "label_dataset",
        "Incremental labelling by night: what is new in the images' folder is labelled, what is done is not touched. "
        "Set its parameters once, then switch its schedule on.",
        scheduled=True,
    ),
    Served(
        "evaluate",
        "flows.evaluate",
        "evaluate",
        "Measure Dice and HD95 on labelled patients that are kept out of the support set.",
    ),
    Served(
        "study",
        "flows.study",
        "study",
        "Compare methods on the same held-out patients over seeds: tables, plots, claims. Goes on where it stopped.",
    ),
    Served(
        "train-student",
        "flows.train_student",
        "train_student",
        "Train a supervised network on a registered data set. Starts by itself when a data set is promoted.",
    ),
)


@dataclass(frozen=True)
class Nightly:
    """The schedule of the incremental run."""

    cron: str = "0 2 * * *"
    timezone: str = "UTC"
    """IANA name: the clock that ``cron`` is read by, summer time included."""
    parameters: dict[str, Any] | None = None
    """The run's parameters; None keeps what the server has."""

    def schedule(self, active: bool) -> Schedule:
        """Return the schedule.

        Raises:
            SettingsError: no such time zone, or no cron expression.
        """
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise SettingsError(
                f"time zone '{self.timezone}' is not known; give an IANA name such as Europe/Berlin to --timezone"
            ) from error
        from prefect.client.schemas.schedules import CronSchedule

        try:
            CronSchedule(cron=self.cron, timezone=self.timezone)
        except ValueError as error:
            raise SettingsError(
                f"'{self.cron}' is not a cron expression; give five fields to --cron, for example '0 2 * * *'"
            ) from error
        return Cron(self.cron, timezone=self.timezone, active=active)


def deployments(nightly: Nightly) -> list[RunnerDeployment]:
    """Build the deployments; parameters and schedules that were set on the server stay.

    Raises:
        SettingsError: a schedule that cannot be.
    """
    return [_deployment(each, nightly) for each in SERVED]


def _deployment(served: Served, nightly: Nightly) -> RunnerDeployment:
    flow = served.load()
    known = _on_server(f"{flow.name}/{served.name}")
    parameters = known.parameters if known is not None else {}
    schedules: list[Any] = []
    if served.scheduled and (nightly.parameters is not None or known is None):
        parameters = nightly.parameters or {}
        schedules = [nightly.schedule(active=nightly.parameters is not None)]
    elif known is not None:
        kept = ("schedule", "active", "parameters", "slug", "max_scheduled_runs")
        schedules = [
            DeploymentScheduleCreate(**{name: getattr(each, name) for name in kept}) for each in known.schedules
        ]
    deployment: Any = flow.to_deployment(
        name=served.name,
        description=served.description,
        tags=["rfss"],
        parameters=parameters,
        schedules=schedules,
        concurrency_limit=ONE_AT_A_TIME if served.scheduled else None,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast("RunnerDeployment", deployment)


def _on_server(name: str) -> Any:
    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None

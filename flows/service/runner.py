"""The process that registers the deployments and runs them: ``python -m flows.service.runner OPTIONS``."""

from __future__ import annotations

import sys

from pydantic import BaseModel

import tasks  # noqa: F401 - sets the environment's defaults before Prefect is imported


class RunnerOptions(BaseModel):
    """What ``rfss serve`` tells its runner."""

    cron: str
    timezone: str
    parameters: dict[str, object] | None = None
    """Of the nightly run."""
    limit: int
    """Runs at once."""
    name: str


def main(options: RunnerOptions) -> None:
    """Register the deployments with the Prefect server of the environment, and serve them until told to stop."""
    from prefect import serve

    from flows.service.deployments import Nightly, deployments
    from tasks.logs import current_log_settings, open_logs

    nightly = Nightly(options.cron, options.timezone, options.parameters)
    with open_logs(current_log_settings()):
        # Schedules stay as they are when the service stops: the next start goes on with them.
        serve(
            *deployments(nightly), pause_on_shutdown=False, print_starting_message=False, limit=options.limit,
            name=options.name,
        )  # fmt: skip


if __name__ == "__main__":
    main(RunnerOptions.model_validate_json(sys.argv[1]))

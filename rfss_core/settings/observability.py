"""Settings of observability: where a run's metrics can be read, and how its process writes its log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from rfss_core.errors import SettingsError
from rfss_core.settings.base import SettingsModel

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
FORMAT_VARIABLE, LEVEL_VARIABLE, FILE_VARIABLE = "RFSS_LOG_FORMAT", "RFSS_LOG_LEVEL", "RFSS_LOG_FILE"
PORT_VARIABLE, ADDRESS_VARIABLE = "RFSS_METRICS_PORT", "RFSS_METRICS_ADDRESS"
FOLDER_VARIABLE = "RFSS_METRICS_DIR"


class ObservabilitySettings(SettingsModel):
    """Where Prometheus finds a run's metrics (docs/observability.md). Nothing here changes a pseudo-label."""

    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port that serves /metrics while the run lasts; 0 takes a free one, which the log names. "
        f"Default: {PORT_VARIABLE}, else no port.",
    )
    metrics_address: str | None = Field(
        None, min_length=1, description=f"Address to serve them on. Default: {ADDRESS_VARIABLE}, else 127.0.0.1."
    )
    metrics_folder: str | None = Field(
        None,
        min_length=1,
        description="Folder that keeps them as a .prom file, for node_exporter's textfile collector and for runs that "
        f"are over before anybody looks. Default: {FOLDER_VARIABLE}, else none.",
    )

    def completed(self) -> ObservabilitySettings:
        """Return the settings with what is left open taken from the environment.

        Raises:
            SettingsError: a variable holds no port.
        """
        variables = {
            "metrics_port": PORT_VARIABLE,
            "metrics_address": ADDRESS_VARIABLE,
            "metrics_folder": FOLDER_VARIABLE,
        }
        found = {name: value for name, variable in variables.items() if (value := os.environ.get(variable))}
        try:
            return ObservabilitySettings.model_validate(found | self.model_dump(exclude_none=True))
        except ValidationError as error:
            raise SettingsError(
                f"{PORT_VARIABLE} is '{found['metrics_port']}', which is no port; give a number from 0 to 65535"
            ) from error


class LogSettings(SettingsModel):
    """How a process writes its log."""

    format: LogFormat = Field("text", description="text, or json: one JSON object a line.")
    level: LogLevel = Field("info", description="The least important lines that are written.")
    file: Path | None = Field(None, description="File that the lines are appended to besides.")

    @classmethod
    def from_environment(cls) -> LogSettings:
        """Return what ``RFSS_LOG_FORMAT``, ``RFSS_LOG_LEVEL`` and ``RFSS_LOG_FILE`` say.

        Raises:
            SettingsError: a value that is not allowed.
        """
        names = {"format": FORMAT_VARIABLE, "level": LEVEL_VARIABLE, "file": FILE_VARIABLE}
        given = {name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}
        for name in {"format", "level"} & given.keys():
            given[name] = given[name].lower()
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            raise SettingsError(f"{names[name]} is '{given[name]}': {problem['msg']}") from error

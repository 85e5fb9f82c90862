"""Settings of execution: where chunks run."""

from __future__ import annotations

from pydantic import Field, field_validator

from rfss_core.settings.base import SettingsModel


class ExecutionSettings(SettingsModel):
    """Where chunks run. Nothing here changes a pseudo-label."""

    executor: str = Field(
        "inline",
        description="inline: this process. local: Dask worker processes on this machine. "
        "tcp://host:port or tls://host:port: an existing Dask scheduler.",
    )
    workers: int | None = Field(None, ge=1, le=1024, description="Worker processes of `local`. Default: one a core.")
    threads: int | None = Field(None, ge=1, le=256, description="Threads of each worker. Default: cores / workers.")
    max_quarantined_fraction: float = Field(
        0.5, ge=0, le=1, description="The run fails when more than this share of the input is unusable."
    )

    @field_validator("executor")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in ("inline", "local") or value.startswith(("tcp://", "tls://")):
            return value
        raise ValueError(f"'{value}' is not an executor; use inline, local, or a scheduler's tcp:// or tls:// address")

"""Settings of execution: where chunks run, and what happens when one fails."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator

from rfss_core.settings.base import SettingsModel

NAMED = ("inline", "local", "gpus", "cluster")
"""Executors that are not a scheduler's address."""


class ClusterSettings(SettingsModel):
    """A cluster that Dask starts and stops with the run."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, populate_by_name=True)

    class_path: str = Field(
        alias="class",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="Import path of a distributed Cluster, such as dask_jobqueue.SLURMCluster or "
        "dask_kubernetes.operator.KubeCluster.",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the class.")
    minimum: int = Field(0, ge=0, le=10_000, description="Fewest workers of adaptive scaling.")
    maximum: int | None = Field(
        None, ge=1, le=10_000, description="Most workers of adaptive scaling. Default: execution.workers, fixed."
    )
    wait_s: float = Field(
        600, gt=0, description="Seconds to wait for a first worker, and for another one when all are gone."
    )

    @model_validator(mode="after")
    def _ordered(self) -> ClusterSettings:
        if self.maximum is None and self.minimum > 0:
            raise ValueError(f"minimum is {self.minimum}, but there is no maximum to scale up to; set both")
        if self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}; swap them")
        return self


class ExecutionSettings(SettingsModel):
    """Where chunks run, and how failures are met. Nothing here changes a pseudo-label."""

    executor: str = Field(
        "inline",
        description="inline: this process. local: Dask worker processes on this machine. gpus: one worker process a "
        "GPU of this machine. cluster: what `cluster` describes. tcp://host:port or tls://host:port: an existing Dask "
        "scheduler.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Worker processes. Default: local one a core, gpus one a GPU, cluster what its class starts.",
    )
    threads: int | None = Field(
        None, ge=1, le=256, description="Threads of each worker. Default: its share of the machine's cores."
    )
    cluster: ClusterSettings | None = Field(None, description="The cluster of executor `cluster`.")
    attempts: int = Field(8, ge=1, le=100, description="Attempts of a chunk that storage or network fail for a moment.")
    backoff_s: float = Field(
        0.5, ge=0, le=60, description="Seconds before the second attempt, about; doubled for each further one."
    )
    backoff_limit_s: float = Field(30, ge=0, le=3600, description="Seconds between two attempts, at most.")
    deaths: int = Field(
        2,
        ge=1,
        le=10,
        description="Times that a chunk must end a worker that it has for itself before the chunk is to blame.",
    )
    retry_quarantined: bool = Field(
        False, description="Try cases again that an earlier run set aside because they ended a worker or failed."
    )
    max_quarantined_fraction: float = Field(
        0.5, ge=0, le=1, description="The run fails when more than this share of the input is unusable."
    )

    verify: bool = Field(
        False,
        description="Hash again what earlier runs finished, and redo what is damaged. Reads the whole workspace.",
    )
    lease_s: float = Field(
        30.0,
        ge=0.5,
        le=3600,
        description="Seconds without a sign of life after which another run may take over this one's workspace.",
    )

    @model_validator(mode="before")
    @classmethod
    def _described_cluster_is_meant(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("cluster") is not None and given.get("executor") is None:
            return {**given, "executor": "cluster"}
        return given

    @field_validator("executor")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in NAMED or value.startswith(("tcp://", "tls://")):
            return value
        raise ValueError(
            f"'{value}' is not an executor; use {', '.join(NAMED)}, or a scheduler's tcp:// or tls:// address"
        )

    @model_validator(mode="after")
    def _complete(self) -> ExecutionSettings:
        if self.executor == "cluster" and self.cluster is None:
            raise ValueError(
                "executor cluster needs execution.cluster with a class, for example "
                "{class: dask_jobqueue.SLURMCluster, arguments: {queue: gpu}}"
            )
        return self

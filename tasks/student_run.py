"""A student's run in MLflow: parameters, a metric a round, the model; taken up again after an interruption."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from rfss_core.store.files import Files
from rfss_core.training import HABITS, Round
from tasks.dataset_run import experiment_id
from tasks.environment import environment_files
from tasks.registry import DataRegistry
from tasks.tracking import answering, metric_name

if TYPE_CHECKING:
    from tasks.student_plan import StudentPlan
    from tasks.student_result import Comparison, Tested
    from tasks.trained import Trained

MODEL = "model.safetensors"
RUN = "mlflow_run.json"
_PARAM = 500
_FOLDER = "model"


class StudentRun:
    """An open MLflow run, over the client's own methods: the fluent ones would set the address for the whole process.

    A plain class: Prefect looks into dataclasses that are passed to tasks, and would rebuild this one.

    Args:
        registry: the store that holds it.
        run_id: of MLflow.
        artifact_uri: where its files lie.
        rounds_logged: rounds that an interrupted run had logged.
        last: step of the last of them.
    """

    def __init__(
        self, registry: DataRegistry, run_id: str, artifact_uri: str, rounds_logged: int = 0, last: int = 0
    ) -> None:
        self.registry = registry
        self.run_id = run_id
        self.artifact_uri = artifact_uri
        self.rounds_logged = rounds_logged
        self._last = last

    @classmethod
    def open(cls, plan: StudentPlan) -> StudentRun:
        """Start a run, or take up the one that an interrupted training began.

        Raises:
            RegistryError: the MLflow store does not answer.
        """
        client, files = plan.registry.client, plan.files
        with answering(plan.registry.uri):
            if files.exists(RUN):
                known = str(json.loads(files.read_bytes(RUN))["run_id"])
                try:
                    run = client.get_run(known)
                    client.update_run(known, status="RUNNING")
                    logged = client.get_metric_history(known, "loss")
                    last = max((one.step for one in logged), default=0)
                    return cls(plan.registry, known, str(run.info.artifact_uri), len(logged), last)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
            root = _store_of(plan)
            run = client.create_run(experiment_id(client, root, plan.registry.uri), run_name=f"student {plan.name}")
            run_id = str(run.info.run_id)
            settings = {**_flat(plan.settings.model_dump(mode="json")), **HABITS}
            client.log_batch(
                run_id,
                params=[Param(name, str(value)[:_PARAM]) for name, value in {**settings, **plan.data.counts}.items()],
                tags=[
                    RunTag("rfss.student", plan.name),
                    RunTag("rfss.dataset", str(plan.dataset)),
                    RunTag("rfss.dataset_digest", plan.dataset.digest),
                ],
            )
            for path, text in environment_files().items():
                client.log_text(run_id, text, path)
        files.write_bytes(RUN, json.dumps({"run_id": run_id, "tracking_uri": plan.registry.uri}).encode())
        return cls(plan.registry, run_id, str(run.info.artifact_uri))

    def log_round(self, one: Round) -> None:
        """Log loss and validation Dice of a round; of a round that was logged before the interruption nothing."""
        if one.step <= self._last:
            return
        self._log_round(one, "")
        self._last = one.step

    def log_round_alone(self, one: Round) -> None:
        """Log a round of the network on the experts' labels alone."""
        self._log_round(one, "alone_")

    def _log_round(self, one: Round, prefix: str) -> None:
        metrics = {f"{prefix}loss": one.loss}
        if one.validation_dice is not None:
            metrics[f"{prefix}validation_dice"] = one.validation_dice
        self._log(metrics, one.step)

    def log_end(self, plan: StudentPlan, trained: Trained, tested: Tested) -> str:
        """Log where the training stopped, the test's figures and the model; return the model's URI."""
        rounds, size = trained.rounds, sum(one.numel() for one in trained.model.network.parameters())
        best = max(rounds, key=lambda one: -1.0 if one.validation_dice is None else one.validation_dice)
        # Without patients who validate the last weights count.
        chosen = best if best.validation_dice is not None else rounds[-1]
        steps = {"stopped_step": rounds[-1].step, "best_step": chosen.step, "network_parameters": size}
        self._log({**steps, **_figures("test", tested)})
        client = self.registry.client
        with answering(self.registry.uri, patient=True), tempfile.TemporaryDirectory(prefix="rfss-student-") as folder:
            path = Path(folder) / MODEL
            path.write_bytes(plan.files.read_bytes(MODEL))
            client.log_artifact(self.run_id, str(path), _FOLDER)
        return f"{self.artifact_uri}/{_FOLDER}"

    def log_comparison(self, comparison: Comparison) -> None:
        """Log the figures of the network on the experts' labels alone, and the gain over it."""
        gain = {"gain_dice.mean": comparison.gain.mean} if comparison.gain.mean is not None else {}
        self._log({**_figures("alone", comparison.alone.tested), **gain})

    def _log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        with answering(self.registry.uri, patient=True):
            self.registry.client.log_batch(
                self.run_id, metrics=[Metric(metric_name(name), value, now, step) for name, value in metrics.items()]
            )

    @contextmanager
    def watched(self, wanted: bool) -> Iterator[None]:
        """Log the machine's load while the context lasts, if that is wanted or MLflow's own variable says so."""
        if not (wanted or MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get()):
            yield
            return
        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.registry.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def end(self, status: str) -> None:
        """End the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        with answering(self.registry.uri):
            self.registry.client.set_terminated(self.run_id, status)


def _store_of(plan: StudentPlan) -> Files:
    workspace = plan.dataset.origin.workspace
    return plan.files if workspace is None else workspace.files


def _figures(prefix: str, tested: Tested) -> dict[str, float]:
    return {
        f"{prefix}_{kind}.{name}": part.mean
        for kind, parts in (("dice", tested.dice), ("hd95", tested.hd95))
        for name, part in parts.items()
        if part.mean is not None
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found

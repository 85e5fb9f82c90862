"""Flow ``train_student``: a supervised network on a registered data set and the experts' labels."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.endings import with_reasons
from flows.session import terminal_listener
from flows.showing import put, quality_table
from flows.watching import Watch, Watched, process_log, watching
from rfss_core.errors import RfssError
from rfss_core.events import EventStream
from rfss_core.settings import ObservabilitySettings, StudentSettings
from rfss_core.store.lease import take
from tasks.comparison import compare_student, wanted
from tasks.progress import PrefectProgress, log_event
from tasks.student import fit_student, known_result, register, try_student
from tasks.student_plan import StudentPlan, gather_student
from tasks.student_result import StudentResult, card_text
from tasks.student_run import StudentRun

LEASE_S = 60.0

log = logging.getLogger("rfss")

Found = TypeVar("Found")


@flow(name="train-student", validate_parameters=True, persist_result=False)
@with_reasons
def train_student(settings: StudentSettings) -> StudentResult:
    """Train a student on a registered data set plus the experts' labels, test it, and register it with its data set.

    Stages: gather -> train -> test -> register -> compare. A run that was interrupted goes on after its last round;
    the same settings on the same data set are trained once.

    Args:
        settings: Everything that the student depends on; only ``dataset`` has no default.

    Returns:
        What stands in ``student.json``.

    Raises:
        UnknownDatasetError: unknown name, version or alias; the message lists what there is.
        CorruptStoreError: files of the data set changed or vanished; they are named.
        InputError: no accepted case, no expert's case within reach, or classes that differ.
        WorkspaceBusyError: another run trains this very student.
        RegistryError: the MLflow store does not answer.
    """
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Found]) -> Found:
        started = time.perf_counter()
        found = work()
        seconds[stage] = round(time.perf_counter() - started, 3)
        return found

    plan = timed("gather", lambda: gather_student(settings))
    watched = Watched(uuid.uuid4().hex[:12], plan.dataset.name, plan.files.url)
    with (
        process_log(),
        take(plan.files, LEASE_S, waiting=log.warning) as lease,
        watching(watched, ObservabilitySettings()) as watch,
    ):
        result = known_result(plan)
        if result is None or wanted(plan, result):
            shown = terminal_listener.get() or log_event
            events = EventStream([lambda _: lease.check(), shown, PrefectProgress(), watch])
            with _recorded(plan, watch, events) as run, run.watched(settings.system_metrics):
                if result is None:
                    trained = timed("train", lambda: fit_student(plan, run, events))
                    tested = timed("test", lambda: try_student(plan, trained, events))
                    result = register(plan, run, trained, tested, seconds)
                if wanted(plan, result):
                    result = compare_student(plan, run, result, events, log.warning)
    _show(result)
    return result


@contextmanager
def _recorded(plan: StudentPlan, watch: Watch, events: EventStream) -> Iterator[StudentRun]:
    """Hold the student's MLflow run open, and say there and to whoever watches how it ended."""
    events.emit(watch.started(plan.settings.network, "inline"))
    run = StudentRun.open(plan)
    try:
        yield run
    except BaseException as error:
        # The run's own error is the one to be seen.
        with suppress(RfssError):
            events.emit(watch.ended("failed" if isinstance(error, Exception) else "stopped"))
        with suppress(RfssError):
            run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.end("FINISHED")
    events.emit(watch.ended("finished"))


def _show(result: StudentResult) -> None:
    """Put the figures into Prefect's UI."""
    if rows := quality_table(result.test_dice, result.test_hd95):
        put(create_table_artifact, rows, key="rfss-student-test", description="Quality on the test patients")
    counts = "".join(f"- {name.replace('_', ' ')}: {count}\n" for name, count in result.counts.items())
    text = (
        f"# Student {result.student}\n\n{result.network} on data set {result.dataset}, {result.steps} steps on "
        f"{result.device}.\n\n{card_text(result)}\n\n{counts}\nModel in `{result.folder}`"
    )
    put(create_markdown_artifact, text, key="rfss-student", description="The student")

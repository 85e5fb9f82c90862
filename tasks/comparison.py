"""Stage ``compare`` of flow ``train_student``: what the pseudo-labels brought, against the experts' labels alone."""

from __future__ import annotations

from collections.abc import Callable

from prefect import task

from rfss_core.events import EventStream
from rfss_core.store.lease import take
from rfss_core.training import Round
from tasks.run import STAGE_TASK
from tasks.student import CHECKPOINT, fit, keep, measure
from tasks.student_notes import note_gain
from tasks.student_plan import StudentPlan
from tasks.student_result import Alone, Comparison, StudentResult
from tasks.student_run import MODEL, StudentRun

RESULT = "alone.json"
LEASE_S = 60.0


def wanted(plan: StudentPlan, result: StudentResult) -> bool:
    """Return whether a comparison is asked for, possible, and not made yet."""
    return plan.settings.compare and plan.alone_files is not None and result.comparison is None


@task(name="compare", **STAGE_TASK)
def compare_student(
    plan: StudentPlan, run: StudentRun, result: StudentResult, events: EventStream, waiting: Callable[[str], None]
) -> StudentResult:
    """Train the network on the experts' labels alone, test it on the same patients, and write the difference down.

    It is trained once for all data sets beside the same experts' labels, and goes on where it was interrupted.

    Args:
        plan: the student's.
        run: of MLflow; gets the other network's rounds and figures too.
        result: of the student.
        events: told of every round.
        waiting: told in a sentence that another run trains this very network.

    Returns:
        The result with its comparison, as it now stands in ``student.json`` and in the data set's card.

    Raises:
        WorkspaceBusyError: another run trains this very network.
        RegistryError: the MLflow store does not answer.
    """
    assert plan.alone_files is not None
    with take(plan.alone_files, LEASE_S, waiting=waiting):
        alone = _trained(plan, run, events)
    compared = result.model_copy(
        update={"comparison": Comparison.of(result.tested, alone, plan.settings.seed), "trained_before": False}
    )
    assert compared.comparison is not None
    run.log_comparison(compared.comparison)
    note_gain(plan.registry, compared.student, [plan.dataset], compared.comparison.gain.mean)
    keep(plan, compared)
    return compared


def _trained(plan: StudentPlan, run: StudentRun, events: EventStream) -> Alone:
    files, data = plan.alone_files, plan.data.alone
    assert files is not None
    assert data is not None
    if files.exists(RESULT):
        return Alone.model_validate_json(files.read_bytes(RESULT))

    def announce(one: Round) -> None:
        run.log_round_alone(one)

    trained = fit(plan, data, files, "alone", events, announce)
    files.write_bytes(MODEL, trained.model.to_bytes())
    found = Alone(
        tested=measure(plan, trained.model, "test alone", events),
        slices=data.counts["slices"],
        steps=trained.rounds[-1].step,
        weights=trained.model.digest,
        folder=files.url,
    )
    files.write_bytes(RESULT, (found.model_dump_json(indent=2) + "\n").encode())
    files.remove(CHECKPOINT)
    return found

"""Stages of flow ``train_student`` after the first: train, test, register."""

from __future__ import annotations

from collections.abc import Callable

from prefect import task

from rfss_core.events import ChunkFinished, EventStream, StageFinished, StageStarted
from rfss_core.settings import QualitySettings
from rfss_core.store.files import Files
from rfss_core.training import Checkpoints, Round, SupervisedModel, train_supervised
from rfss_core.training.measurement import measure_student
from rfss_core.training.student_data import StudentData
from rfss_core.weights import resolve_device
from tasks.run import STAGE_TASK
from tasks.student_notes import note_result
from tasks.student_plan import StudentPlan
from tasks.student_result import StudentResult, Tested, card_text
from tasks.student_run import MODEL, StudentRun
from tasks.students import register_student, registered_version
from tasks.trained import Trained

CHECKPOINT, RESULT = "checkpoint.safetensors", "student.json"


def known_result(plan: StudentPlan) -> StudentResult | None:
    """Return the result of an earlier run on the same data, settings and code, if one finished."""
    if not plan.files.exists(RESULT):
        return None
    found = StudentResult.model_validate_json(plan.files.read_bytes(RESULT))
    return found.model_copy(update={"trained_before": True})


@task(name="train", **STAGE_TASK)
def fit_student(plan: StudentPlan, run: StudentRun, events: EventStream) -> Trained:
    """Train the network; a training that was interrupted goes on after its last round.

    Raises:
        ModelError: a damaged checkpoint.
        SupportError: labels that do not fit their images.
    """
    trained = fit(plan, plan.data, plan.files, "train", events, run.log_round, run.rounds_logged)
    plan.files.write_bytes(MODEL, trained.model.to_bytes())
    return trained


def fit(
    plan: StudentPlan,
    data: StudentData,
    files: Files,
    stage: str,
    events: EventStream,
    announce: Callable[[Round], None],
    done: int = 0,
) -> Trained:
    """Train a network as the plan says.

    Args:
        plan: network, settings and seed.
        data: what it is trained on.
        files: folder of its checkpoint.
        stage: name in the event stream.
        events: told of every round.
        announce: called after every round.
        done: rounds that an interrupted training had done.
    """
    settings, training = plan.settings, plan.settings.training
    rounds = -(-training.steps // training.round_steps)
    events.emit(StageStarted(stage, rounds, done, f"rounds of {training.round_steps} steps"))

    def told(one: Round) -> None:
        announce(one)
        events.emit(ChunkFinished(stage, f"step-{one.step}", training.round_steps * training.batch_size, 0.0, 0.0, 0.0))

    checkpoints = Checkpoints(
        lambda: files.read_bytes(CHECKPOINT) if files.exists(CHECKPOINT) else None,
        lambda content: files.write_bytes(CHECKPOINT, content),
    )
    model, found = train_supervised(
        data.slices,
        settings.network,
        training,
        seed=settings.seed,
        device=resolve_device(settings.device),
        provenance=data.provenance,
        checkpoints=checkpoints,
        progress=told,
    )
    events.emit(StageFinished(stage, 0.0, _note(found)))
    return Trained(model, found)


@task(name="test", **STAGE_TASK)
def try_student(plan: StudentPlan, trained: Trained, events: EventStream) -> Tested:
    """Measure Dice and HD95 on the test patients; empty where there are none."""
    return measure(plan, trained.model, "test", events)


def measure(plan: StudentPlan, model: SupervisedModel, stage: str, events: EventStream) -> Tested:
    """Measure a network on the plan's test patients."""
    cases, classes = plan.data.test, plan.data.classes
    events.emit(StageStarted(stage, len(cases), 0, "cases"))
    measured = measure_student(
        model,
        cases,
        classes,
        resolve_device(plan.settings.device),
        QualitySettings.model_validate({}),
        lambda case: events.emit(ChunkFinished(stage, case.id, case.n_slices, 0.0, 0.0, 0.0)),
    )
    events.emit(StageFinished(stage, 0.0, "" if cases else "no patient is left for a test"))
    return Tested.of(measured, classes, plan.settings.seed)


@task(name="register", **STAGE_TASK)
def register(
    plan: StudentPlan, run: StudentRun, trained: Trained, tested: Tested, seconds: dict[str, float]
) -> StudentResult:
    """Log figures and model, register the student with its data set as input, and write card and ``student.json``.

    Raises:
        RegistryError: the MLflow store does not answer.
    """
    model, rounds = trained.model, trained.rounds
    uri = run.log_end(plan, trained, tested)
    student = register_student(
        plan.registry,
        plan.name,
        run.run_id,
        uri,
        [plan.dataset],
        dice=tested.dice["mean"].mean if tested.dice else None,
        tags={"network": plan.settings.network, "weights": model.digest, "folder": plan.files.url},
    )
    best = [one.validation_dice for one in rounds if one.validation_dice is not None]
    result = StudentResult(
        student=str(student),
        dataset=str(plan.dataset),
        dataset_digest=plan.dataset.digest,
        network=plan.settings.network,
        weights=model.digest,
        folder=plan.files.url,
        counts=plan.data.counts,
        steps=rounds[-1].step,
        best_validation_dice=max(best) if best else None,
        test_dice=tested.dice,
        test_hd95=tested.hd95,
        patient_dice=tested.patients,
        seconds=seconds,
        device=str(resolve_device(plan.settings.device)),
        mlflow_run_id=run.run_id,
    )
    keep(plan, result)
    # Not before the result is on disk: until then it saves the whole training.
    plan.files.remove(CHECKPOINT)
    return result


def keep(plan: StudentPlan, result: StudentResult) -> None:
    """Write a result into the data set's card and ``student.json``; the latter last, because it ends the work."""
    version = registered_version(plan.registry, plan.dataset)
    if version is not None:
        gain = None if result.comparison is None else result.comparison.gain.mean
        note_result(plan.registry, version, card_text(result), title=f"Student {result.student}", gain=gain)
    plan.files.write_bytes(RESULT, (result.model_dump_json(indent=2) + "\n").encode())


def _note(rounds: list[Round]) -> str:
    scores = [one.validation_dice for one in rounds if one.validation_dice is not None]
    chosen = f"best validation Dice {max(scores):.3f}" if scores else "fixed schedule, too few patients to validate"
    return f"{rounds[-1].step} of {rounds[-1].steps} steps, loss {rounds[-1].loss:.3f}, {chosen}"

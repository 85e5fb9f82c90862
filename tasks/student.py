"""Stages of flow ``train_student``: gather, train, test, register."""

from __future__ import annotations

from typing import Any

from prefect import task
from pydantic import BaseModel, Field

from rfss_core.code import code_version
from rfss_core.datasets import PseudoLabelSet, load
from rfss_core.digest import digest_json
from rfss_core.errors import InputError
from rfss_core.events import ChunkFinished, EventStream, StageFinished, StageStarted
from rfss_core.quality import summarise
from rfss_core.settings import QualitySettings, StudentSettings
from rfss_core.store.files import Files
from rfss_core.training import Checkpoints, Round, SupervisedModel, train_supervised
from rfss_core.training.measurement import measure_student
from rfss_core.training.student_data import StudentData, gather
from rfss_core.weights import resolve_device
from tasks.registry import DataRegistry
from tasks.run import STAGE_TASK
from tasks.student_run import MODEL, StudentRun
from tasks.students import register_student
from tasks.summary import IntervalPart, jsonable
from tasks.tracking import registry_uri, tracking_uri

CHECKPOINT, RESULT = "checkpoint.safetensors", "student.json"
FOLDER = "students"


class StudentResult(BaseModel):
    """What a run of ``train_student`` did; stands in ``student.json``."""

    student: str
    """``name/version`` of the registered model."""
    dataset: str
    dataset_digest: str
    network: str
    weights: str
    """sha256 of the model's file."""
    folder: str
    """Holds the model and this file."""
    counts: dict[str, int]
    """Patients, cases and slices by part."""
    steps: int
    best_validation_dice: float | None
    test_dice: dict[str, IntervalPart] = Field(default_factory=dict)
    """Per class and ``mean``, on patients who neither trained nor validated; empty without such patients."""
    test_hd95: dict[str, IntervalPart] = Field(default_factory=dict)
    seconds: dict[str, float]
    device: str
    mlflow_run_id: str
    trained_before: bool = False
    """Whether an earlier run had finished this very student."""


class StudentPlan:
    """A training that is about to begin or to go on.

    A plain class: Prefect looks into dataclasses that are passed to tasks, and would rebuild this one.

    Args:
        settings: the student's.
        dataset: the registered set.
        data: who trains, validates and is tested.
        name: of the student.
        files: folder of this very training: its name is the digest of all that it depends on.
        registry: of data sets and students.
    """

    def __init__(
        self,
        settings: StudentSettings,
        dataset: PseudoLabelSet,
        data: StudentData,
        name: str,
        files: Files,
        registry: DataRegistry,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.data = data
        self.name = name
        self.files = files
        self.registry = registry


class Trained:
    """A trained network and its rounds; a plain class for the same reason.

    Args:
        model: the network.
        rounds: of the training.
    """

    def __init__(self, model: SupervisedModel, rounds: list[Round]) -> None:
        self.model = model
        self.rounds = rounds


@task(name="gather", **STAGE_TASK)
def gather_student(settings: StudentSettings) -> StudentPlan:
    """Load and verify the data set, find the experts' cases, and decide who trains, validates and is tested.

    Raises:
        UnknownDatasetError: unknown name, version or alias.
        CorruptStoreError: files of the data set changed or vanished; they are named.
        InputError: no accepted case, no expert's case, or classes that differ.
    """
    dataset = load(settings.dataset, registry=settings.registry, log_input=False)
    data = gather(dataset, settings)
    workspace = dataset.origin.workspace
    if settings.folder is None and workspace is None:
        raise InputError(
            f"the workspace of data set '{dataset}' is out of reach, so there is no place for checkpoints; name "
            "a folder (--out)"
        )
    root = settings.folder or f"{workspace.url if workspace else ''}/{FOLDER}"
    name = settings.name or dataset.name
    key = digest_json(
        {
            "data": data.digest,
            "network": settings.network,
            "training": settings.training.model_dump(mode="json"),
            "seed": settings.seed,
            "device": resolve_device(settings.device).type,
            "code": code_version("imaging", "datasets", "training"),
        }
    )[:16]
    if dataset.registered is not None and dataset.registered.registry:
        uri = dataset.registered.registry
    elif workspace is not None:
        uri = tracking_uri(workspace.files)
    else:
        uri = registry_uri(settings.registry)
    return StudentPlan(settings, dataset, data, name, Files(f"{root}/{name}/{key}"), DataRegistry(uri))


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
    settings, files = plan.settings, plan.files
    training = settings.training
    done = run.rounds_logged
    events.emit(
        StageStarted(
            "train", -(-training.steps // training.round_steps), done, f"rounds of {training.round_steps} steps"
        )
    )

    def announce(one: Round) -> None:
        run.log_round(one)
        events.emit(
            ChunkFinished("train", f"step-{one.step}", training.round_steps * training.batch_size, 0.0, 0.0, 0.0)
        )

    checkpoints = Checkpoints(
        lambda: files.read_bytes(CHECKPOINT) if files.exists(CHECKPOINT) else None,
        lambda data: files.write_bytes(CHECKPOINT, data),
    )
    model, rounds = train_supervised(
        plan.data.slices,
        settings.network,
        training,
        seed=settings.seed,
        device=resolve_device(settings.device),
        provenance=plan.data.provenance,
        checkpoints=checkpoints,
        progress=announce,
    )
    files.write_bytes(MODEL, model.to_bytes())
    events.emit(StageFinished("train", 0.0, _note(rounds)))
    return Trained(model, rounds)


@task(name="test", **STAGE_TASK)
def try_student(
    plan: StudentPlan, trained: Trained, events: EventStream
) -> tuple[dict[str, IntervalPart], dict[str, IntervalPart]]:
    """Measure Dice and HD95 on the test patients; both are empty where there are none."""
    cases, classes = plan.data.test, plan.data.classes
    events.emit(StageStarted("test", len(cases), 0, "cases"))
    quality = QualitySettings.model_validate({})
    measured = measure_student(
        trained.model,
        cases,
        classes,
        resolve_device(plan.settings.device),
        quality,
        lambda case: events.emit(ChunkFinished("test", case.id, case.n_slices, 0.0, 0.0, 0.0)),
    )
    events.emit(StageFinished("test", 0.0, "" if cases else "no patient is left for a test"))
    if not cases:
        return {}, {}
    summary = summarise(measured, classes, quality, plan.settings.seed)
    return tuple({name: _part(one) for name, one in found.items()} for found in (summary.dice, summary.hd95))  # type: ignore[return-value]


@task(name="register", **STAGE_TASK)
def register(
    plan: StudentPlan,
    run: StudentRun,
    trained: Trained,
    tested: tuple[dict[str, IntervalPart], dict[str, IntervalPart]],
    seconds: dict[str, float],
) -> StudentResult:
    """Log figures and model, register the student with its data set as input, and write ``student.json``.

    Raises:
        RegistryError: the MLflow store does not answer.
    """
    model, rounds = trained.model, trained.rounds
    dice, hd95 = tested
    mean = dice["mean"].mean if dice else None
    uri = run.log_end(plan, {"dice": dice, "hd95": hd95})
    student = register_student(
        plan.registry,
        plan.name,
        run.run_id,
        uri,
        [plan.dataset],
        dice=mean,
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
        test_dice=dice,
        test_hd95=hd95,
        seconds=seconds,
        device=str(resolve_device(plan.settings.device)),
        mlflow_run_id=run.run_id,
    )
    plan.files.write_bytes(RESULT, (result.model_dump_json(indent=2) + "\n").encode())
    # Not before the result is on disk: until then it saves the whole training.
    plan.files.remove(CHECKPOINT)
    return result


def _note(rounds: list[Round]) -> str:
    scores = [one.validation_dice for one in rounds if one.validation_dice is not None]
    chosen = f"best validation Dice {max(scores):.3f}" if scores else "fixed schedule, too few patients to validate"
    return f"{rounds[-1].step} of {rounds[-1].steps} steps, loss {rounds[-1].loss:.3f}, {chosen}"


def _part(interval: Any) -> IntervalPart:
    return IntervalPart(
        mean=jsonable(interval.mean), ci_low=jsonable(interval.ci_low), ci_high=jsonable(interval.ci_high), n=interval.n
    )

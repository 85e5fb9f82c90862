"""What a training is about to do: its data, and where it is kept."""

from __future__ import annotations

from prefect import task

from rfss_core.code import code_version
from rfss_core.datasets import PseudoLabelSet, load
from rfss_core.digest import digest_json
from rfss_core.errors import InputError
from rfss_core.settings import StudentSettings
from rfss_core.store.files import Files
from rfss_core.training.student_data import StudentData, gather
from rfss_core.weights import resolve_device
from tasks.registry import DataRegistry
from tasks.run import STAGE_TASK
from tasks.tracking import registry_uri, tracking_uri

FOLDER, ALONE = "students", "experts-alone"


class StudentPlan:
    """A training that is about to begin or to go on.

    A plain class: Prefect looks into dataclasses that are passed to tasks, and would rebuild this one.

    Args:
        settings: the student's.
        dataset: the registered set.
        data: who trains, validates and is tested.
        name: of the student.
        root: folder of all students.
        registry: of data sets and students.

    Attributes:
        files: folder of this very training: its name is the digest of all that it depends on.
        alone_files: folder of the same training without pseudo-labels; None where there can be none.
    """

    def __init__(
        self,
        settings: StudentSettings,
        dataset: PseudoLabelSet,
        data: StudentData,
        name: str,
        root: str,
        registry: DataRegistry,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.data = data
        self.name = name
        self.registry = registry
        self.files = Files(f"{root}/{name}/{_key(data, settings)}")
        alone = data.alone if data.test else None
        self.alone_files = None if alone is None else Files(f"{root}/{ALONE}/{_key(alone, settings)}")


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
    if dataset.registered is not None and dataset.registered.registry:
        uri = dataset.registered.registry
    elif workspace is not None:
        uri = tracking_uri(workspace.files)
    else:
        uri = registry_uri(settings.registry)
    return StudentPlan(settings, dataset, data, name, root, DataRegistry(uri))


def _key(data: StudentData, settings: StudentSettings) -> str:
    """Return the name of a training's folder: the digest of all that its weights depend on."""
    parts = {
        "data": data.digest,
        "network": settings.network,
        "training": settings.training.model_dump(mode="json"),
        "seed": settings.seed,
        "device": resolve_device(settings.device).type,
        "code": code_version("imaging", "datasets", "training"),
    }
    return digest_json(parts)[:16]

"""Lineage through a real MLflow store: support set, run, data set, student, from every end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from published import Published, record_of

from rfss_core.datasets import PseudoLabelSet, load
from rfss_core.datasets.card import UNKNOWN_STUDENT
from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import InputError, UnknownDatasetError
from rfss_core.store.files import Files
from tasks.dataset_run import register_dataset
from tasks.lineage import Lineage, trace
from tasks.registry import DataRegistry
from tasks.student_notes import note_result
from tasks.students import StudentVersion, register_student, students

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def trained(
    registered: Published, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DataRegistry, PseudoLabelSet, StudentVersion]:
    """Two data sets of one support set, and a student of both."""
    folder = tmp_path_factory.mktemp("trained") / "work"
    shutil.copytree(registered.workspace, folder)
    copy = replace(registered, workspace=folder)
    register_dataset(record_of(copy, fingerprint="again"), Files(folder))
    registry = DataRegistry(f"sqlite:///{folder / 'mlflow.db'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        first, second = (load(f"hearts/{number}", workspace=folder, verify="none") for number in (1, 2))
    experiment = registry.client.create_experiment("students", artifact_location=(folder / "models").as_uri())
    run = registry.client.create_run(experiment).info
    student = register_student(
        registry, "heart-unet", run.run_id, f"{run.artifact_uri}/model", [first, second], dice=0.81
    )
    return registry, second, student


def kinds(lineage: Lineage) -> list[str]:
    return [node.kind for node in lineage.nodes]


def test_every_end_leads_to_the_same_chain(trained: tuple[DataRegistry, PseudoLabelSet, StudentVersion]) -> None:
    registry, _, student = trained
    assert str(student) == "heart-unet/1"
    found = [
        trace(registry, reference)
        for reference in (
            "heart-unet/1", "heart-unet", "student:heart-unet", "hearts@candidate", "hearts/1", "support:" + "5" * 12,
            f"run:{student.run_id}", f"run:{registry.find(DatasetReference('hearts', version='1')).run_id}",
        )
    ]  # fmt: skip
    chain = found[0]
    assert sorted(kinds(chain)) == ["dataset", "dataset", "run", "run", "run", "student", "support"]
    for other in found[1:]:
        assert {node.id for node in other.nodes} == {node.id for node in chain.nodes}
        assert set(other.edges) == set(chain.edges)
    assert [item.asked for item in found[3:6]] == [
        ("dataset:hearts/2",),
        ("dataset:hearts/1",),
        (f"support:{'5' * 36}",),
    ]
    [root] = chain.roots()
    assert root.id == f"support:{'5' * 36}"
    # Down from the support set to the student, and up again.
    down, up = [root.id], ["student:heart-unet/1"]
    for _ in range(4):
        down.append(chain.downstream(down[-1])[0])
        up.append(chain.upstream(up[-1])[0])
    assert down[-1] == up[0]
    assert up[-1] == down[0]
    assert json.loads(json.dumps(chain.to_json()))["nodes"][0]["kind"]


def test_what_a_student_was_trained_on_is_its_runs_input(
    trained: tuple[DataRegistry, PseudoLabelSet, StudentVersion],
) -> None:
    registry, dataset, student = trained
    inputs = registry.client.get_run(student.run_id).inputs.dataset_inputs
    # One content, registered twice: one input.
    assert {item.dataset.name for item in inputs} == {"hearts"}
    found = registry.client.search_runs(
        # The copied store holds runs of other tests, too.
        [registry.client.get_experiment_by_name("students").experiment_id],
        f"dataset.digest = '{dataset.digest[:36]}' AND dataset.context = 'training'",
    )
    assert [item.info.run_id for item in found] == [student.run_id]
    version = registry.find(DatasetReference("hearts", version="2"))
    assert json.loads(version.tags["student.heart-unet.1"]) == {"run_id": student.run_id, "dice": 0.81}


def test_a_student_is_registered_once(trained: tuple[DataRegistry, PseudoLabelSet, StudentVersion]) -> None:
    registry, dataset, student = trained
    uri = student.tags["model_uri"]
    again = register_student(registry, "heart-unet", student.run_id, uri, [dataset], dice=0.81)
    assert again.version == student.version
    assert len(students(registry, "heart-unet")) == 1
    with pytest.raises(InputError, match="trained on no data set"):
        register_student(registry, "heart-unet", student.run_id, uri, [])


def test_a_data_card_takes_the_students_result(trained: tuple[DataRegistry, PseudoLabelSet, StudentVersion]) -> None:
    registry, _, _ = trained
    version = registry.find(DatasetReference("hearts", version="1"))
    for text in ("Dice 0.70 without, 0.81 with.", "Dice 0.71 without, 0.82 with."):
        note_result(registry, version, text)
    card = Path(mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="dataset/card.md",
                                                    tracking_uri=registry.uri)).read_text()  # fmt: skip
    assert "Dice 0.71" in card
    assert "Dice 0.70" not in card
    assert UNKNOWN_STUDENT not in card
    assert MlflowClient(registry.uri).get_model_version("rfss-dataset.hearts", "1").description == card


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("lungs/1", "no data set 'lungs'"),
        ("student:lung-unet", "no student 'lung-unet' .* registered are: heart-unet"),
        ("heart-unet/7", "has no version 7; it has versions 1 and aliases none"),
        ("heart-unet@best", "has no alias 'best'; it has versions 1 and aliases none"),
        ("support:abc", "support set with digest 'abc'"),
        ("run:abc", "no run 'abc'"),
        ("a b", "names no data set"),
    ],
)
def test_what_is_unknown_is_said(
    trained: tuple[DataRegistry, PseudoLabelSet, StudentVersion], reference: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        trace(trained[0], reference)
    assert isinstance(error.value, UnknownDatasetError) or " " in reference

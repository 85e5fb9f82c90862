"""Flow ``train_student``: a registered set and experts' labels in, a registered student with its lineage out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cohorts import save
from published import CLASSES, OBLIQUE, Published, by_brightness, publish_dataset, record_of, smooth
from service import dying_server

from flows.cli import main
from flows.exit_codes import BAD_INPUT
from flows.train_student import train_student
from rfss_core.datasets import load
from rfss_core.datasets.reference import DatasetReference
from rfss_core.errors import InputError, LeakError, SettingsError, UnknownDatasetError
from rfss_core.imaging import discover, estimate_window, read_image, read_label, write_label
from rfss_core.settings import ImagingSettings, StudentSettings, load_settings
from rfss_core.store import Workspace
from rfss_core.store.files import Files
from rfss_core.training import SupervisedModel
from rfss_core.training.student_data import gather
from tasks.dataset_run import register_dataset
from tasks.lineage import trace
from tasks.registry import DataRegistry
from tasks.student_result import StudentResult, card_text

TRAINING = {"width": 4, "steps": 6, "round_steps": 2, "batch_size": 4, "image_size": 32}
PATIENTS = 8


def label_experts(published: Published, values: tuple[int, ...] = tuple(CLASSES), *, learnable: bool = False) -> None:
    """Put labelled patients into the data set's workspace, as ingest does; learnable labels follow the images."""
    rng = np.random.default_rng(5)
    root, settings = published.workspace.parent / "experts", ImagingSettings()
    for number in range(PATIENTS):
        name = f"sub-x{number}.nii.gz"
        image = rng.integers(0, 1000, (20, 24, 4)).astype(np.int16)
        label = rng.choice([0, *values], (20, 24, 4)).astype(np.uint8)
        if learnable:
            image = smooth(rng, (20, 24, 4))
            label = by_brightness(image, values)
        save(root / "images" / name, image, OBLIQUE)
        save(root / "labels" / name, label, OBLIQUE)
    workspace = Workspace.open(published.workspace)
    cases = discover(str(root / "images"), str(root / "labels"), settings).cases
    for source in cases:
        volume = read_image(source, settings)
        window = estimate_window(volume.pixels, settings)
        workspace.write_case(source, volume, window, read_label(source, volume.grid, settings), source.case_id)
    workspace.write_manifest([], [*published.labels, *(source.case_id for source in cases)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Published:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        published = publish_dataset(tmp_path_factory.mktemp("student"))
        label_experts(published)
        register_dataset(record_of(published), Files(published.workspace))
    return published


def asked(site: Published, **changes: object) -> StudentSettings:
    given = {"dataset": "hearts@candidate", "registry": str(site.workspace), "training": TRAINING, "device": "cpu"}
    return StudentSettings.model_validate(given | changes)


@pytest.fixture(scope="module")
def trained(site: Published) -> StudentResult:
    return train_student(asked(site))


def test_a_student_is_registered_with_what_it_was_made_from(site: Published, trained: StudentResult) -> None:
    assert trained.student == "hearts/1"
    assert trained.dataset == "hearts/1"
    # Of 8 labelled patients the run held 6 out: 3 of them validate, 3 are tested.
    assert trained.counts["validation_patients"] == trained.counts["test_patients"] == 3
    assert trained.counts["expert_cases"] == 5
    assert trained.counts["pseudo_cases"] == 2
    assert set(trained.test_dice) == {"mean", *CLASSES.values()}
    assert trained.test_dice["mean"].n == 3
    model = SupervisedModel.from_bytes((Path(trained.folder) / "model.safetensors").read_bytes())
    assert model.digest == trained.weights
    assert not (Path(trained.folder) / "checkpoint.safetensors").exists()
    registry = DataRegistry(f"sqlite:///{site.workspace / 'mlflow.db'}")
    ids = [node.id for node in trace(registry, "student:hearts").nodes]
    kinds = sorted(name.split(":")[0] for name in ids)
    assert kinds == ["dataset", "run", "run", "student", "support"]
    run = registry.client.get_run(trained.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "6"
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["hearts"]
    losses = registry.client.get_metric_history(trained.mlflow_run_id, "loss")
    assert [one.step for one in losses] == [2, 4, 6]
    # What MLflow's autologging would have noted of a Lightning trainer.
    assert run.data.params["optimizer"] == "AdamW"
    assert run.data.metrics["stopped_step"] == 6
    assert run.data.metrics["best_step"] in (2, 4, 6)
    assert run.data.metrics["network_parameters"] == sum(one.numel() for one in model.network.parameters())
    assert {item.path for item in registry.client.list_artifacts(trained.mlflow_run_id)} == {"environment", "model"}
    assert run.data.metrics["test_dice.mean"] == pytest.approx(trained.test_dice["mean"].mean)
    path = registry.client.download_artifacts(trained.mlflow_run_id, "model/model.safetensors")
    assert SupervisedModel.from_bytes(Path(path).read_bytes()).digest == trained.weights


def test_the_same_student_is_trained_once(site: Published, trained: StudentResult) -> None:
    again = train_student(asked(site))
    assert again.trained_before
    assert again.student == trained.student
    assert again.mlflow_run_id == trained.mlflow_run_id


def test_a_killed_training_goes_on_to_the_same_student(
    site: Published, trained: StudentResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.student_run import StudentRun

    log_round = StudentRun.log_round

    def die_in_the_second(self: StudentRun, one: object) -> None:
        log_round(self, one)
        if one.step == 4:
            raise KeyboardInterrupt

    settings = asked(site, folder=str(tmp_path), name="other")
    with monkeypatch.context() as patch:
        patch.setattr(StudentRun, "log_round", die_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            train_student(settings)
    [folder] = (tmp_path / "other").iterdir()
    assert (folder / "checkpoint.safetensors").exists()
    result = train_student(settings)
    assert result.weights == trained.weights
    assert not result.trained_before
    registry = DataRegistry(f"sqlite:///{site.workspace / 'mlflow.db'}")
    losses = registry.client.get_metric_history(result.mlflow_run_id, "loss")
    assert [one.step for one in losses] == [2, 4, 6]
    assert registry.client.get_run(result.mlflow_run_id).info.status == "FINISHED"


def test_the_card_holds_what_the_pseudo_labels_brought(
    site: Published, trained: StudentResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = trained.comparison
    assert compared is not None
    gains = [trained.patient_dice[one] - compared.alone.tested.patients[one] for one in trained.patient_dice]
    assert len(gains) == 3
    assert compared.gain.mean == pytest.approx(np.mean(gains))
    assert compared.gain.mean == pytest.approx(trained.test_dice["mean"].mean - compared.alone.tested.dice["mean"].mean)
    assert compared.alone.weights != trained.weights
    assert compared.alone.slices == 5 * 4
    # Everywhere the card is, and without a change of what is checked.
    registry = DataRegistry(f"sqlite:///{site.workspace / 'mlflow.db'}")
    version = registry.find(DatasetReference("hearts", version="1"))
    card = (site.folder / "card.md").read_text()
    assert f"### Student hearts/1\n\n{card_text(trained)}" in card
    stored = registry.client.download_artifacts(version.run_id, "dataset/card.md")
    assert Path(stored).read_text() == card
    assert load("hearts@candidate", registry=str(site.workspace), log_input=False).digest == site.manifest.digest
    run = registry.client.get_run(trained.mlflow_run_id)
    assert run.data.metrics["gain_dice.mean"] == pytest.approx(compared.gain.mean)
    assert "alone_dice.shell" in run.data.metrics
    assert [one.step for one in registry.client.get_metric_history(trained.mlflow_run_id, "alone_loss")] == [2, 4, 6]
    # And where a user looks.
    monkeypatch.setenv("COLUMNS", "200")
    said = []
    for command in (["datasets"], ["datasets", "--json"], ["lineage", "hearts@candidate"]):
        with pytest.raises(SystemExit):
            main([*command, "--workspace", str(site.workspace)])
        said.append(capsys.readouterr().out)
    listed, plain, lineage = said
    assert f"{compared.gain.mean:+.3f}" in listed
    [newest] = json.loads(plain)["hearts"]
    assert newest["student_gain"] == pytest.approx(compared.gain.mean, abs=1e-6)
    assert newest["students"][0]["student"] == "hearts/1"
    assert f"gain {compared.gain.mean:+.3f}" in lineage


def test_a_comparison_is_made_later_and_goes_on_where_it_was_killed(
    site: Published, trained: StudentResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.student_run import StudentRun

    settings = {"folder": str(tmp_path), "name": "later"}
    before = train_student(asked(site, **settings, compare=False))
    assert before.comparison is None
    assert "Not compared" in (site.folder / "card.md").read_text()
    log_round = StudentRun.log_round_alone

    def die_in_the_second(self: StudentRun, one: object) -> None:
        log_round(self, one)
        if one.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StudentRun, "log_round_alone", die_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            train_student(asked(site, **settings))
    [folder] = (tmp_path / "experts-alone").iterdir()
    assert (folder / "checkpoint.safetensors").exists()
    after = train_student(asked(site, **settings))
    assert after.weights == before.weights == trained.weights
    assert after.mlflow_run_id == before.mlflow_run_id
    assert after.comparison is not None
    assert after.comparison.alone.weights == trained.comparison.alone.weights
    assert not (folder / "checkpoint.safetensors").exists()
    card = (site.folder / "card.md").read_text()
    assert "Not compared" not in card
    assert card.index("### Student hearts/1") < card.index("### Student later/1")
    # Another student beside the same experts: the network on their labels alone is there.
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    other = train_student(asked(site, **settings | {"name": "unsure"}, ignore=0.5, system_metrics=True))
    run = DataRegistry(f"sqlite:///{site.workspace / 'mlflow.db'}").client.get_run(other.mlflow_run_id)
    assert run.data.metrics["system/cpu_utilization_percentage"] > 0
    assert other.weights != after.weights
    assert other.comparison.alone == after.comparison.alone
    assert len(list((tmp_path / "experts-alone").iterdir())) == 1


def test_ignored_voxels_and_weights_reach_the_training(site: Published) -> None:
    dataset = load(str(site.workspace), log_input=False)
    data = gather(dataset, asked(site, ignore=0.5))
    pseudo = [row for row, expert in enumerate(data.provenance.expert) if not expert]
    assert data.provenance.ignore == max(CLASSES) + 1
    assert all((data.slices.mask(row) == data.provenance.ignore).any() for row in pseudo)
    assert not any((data.slices.mask(row) > max(CLASSES)).any() for row in range(min(pseudo)))
    by_case = {case.id: case.weight for case in dataset.cases()}
    assert [data.provenance.weights[row] for row in pseudo] == [
        by_case[data.slices.ids[row].rsplit(":", 1)[0]] for row in pseudo
    ]
    plain = gather(dataset, asked(site, weighted=False))
    assert set(plain.provenance.weights) == {1.0}
    assert len({data.digest, plain.digest, gather(dataset, asked(site)).digest}) == 3
    tested = {case.patient for case in data.test}
    assert not tested & set(data.slices.patients)


def test_experts_of_another_folder(site: Published) -> None:
    experts = site.workspace.parent / "experts"
    own = asked(site, images=str(experts / "images"), labels=str(experts / "labels"), test_share=0.25)
    data = gather(load(str(site.workspace), log_input=False), own)
    assert data.provenance.validates is None
    assert data.counts["test_patients"] == 2
    assert data.counts["expert_patients"] == 6


def test_a_tested_image_that_trains_under_another_name_is_caught(site: Published, tmp_path: Path) -> None:
    experts = site.workspace.parent / "experts"
    dataset = load(str(site.workspace), log_input=False)
    clean, leaky, pseudo = (Path(shutil.copytree(experts, tmp_path / name)) for name in ("clean", "leaky", "pseudo"))
    for part in ("images", "labels"):
        for number in range(PATIENTS):
            shutil.copy(leaky / part / f"sub-x{number}.nii.gz", leaky / part / f"sub-y{number}.nii.gz")
    # An expert labelled what the data set holds a pseudo-label of, and calls the patient otherwise.
    case = dataset.cases()[0]
    for number in range(PATIENTS):
        shutil.copy(case.source.image, pseudo / "images" / f"sub-x{number}.nii.gz")
        write_label(case.label(), case.grid, pseudo / "labels" / f"sub-x{number}.nii.gz")

    def own(folder: Path) -> StudentSettings:
        return asked(site, images=str(folder / "images"), labels=str(folder / "labels"))

    gather(dataset, own(clean))
    with pytest.raises(LeakError, match="has the very pixels of 'sub-"):
        gather(dataset, own(leaky))
    with pytest.raises(LeakError, match="has the very pixels of"):
        gather(dataset, own(pseudo))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": "nobody@champion"}, UnknownDatasetError, "no data set 'nobody'"),
        ({"dataset": "hearts@champion"}, UnknownDatasetError, "champion"),
        ({"decisions": ["reject"], "dataset": "hearts/1"}, InputError, "every pseudo-labelled|no case|validates"),
        ({"device": "abacus"}, SettingsError, "'abacus' is not a device"),
    ],
)
def test_bad_input_is_refused(site: Published, changes: dict[str, object], error: type, message: str) -> None:
    settings = asked(site, **changes)
    if changes.get("decisions"):
        site = publish_dataset(site.workspace.parent / "accepted only", decisions=("accept", "accept"))
        settings = asked(site, dataset=str(site.workspace), **{k: v for k, v in changes.items() if k != "dataset"})
    with pytest.raises(error, match=message):
        train_student(settings)


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    site = publish_dataset(tmp_path)
    label_experts(site, (1, 2))
    with pytest.raises(InputError, match=r"holds class 2, but 'hearts' has the classes \{1: 'shell', 3: 'core'\}"):
        gather(load(str(site.workspace), log_input=False), asked(site))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="given together"):
        load_settings({"dataset": "a@b", "images": "x"}, model=StudentSettings)
    with pytest.raises(SettingsError, match="dataset is missing"):
        load_settings({}, model=StudentSettings)
    schema = StudentSettings.model_json_schema()
    assert all("description" in field for field in schema["properties"].values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hearts@nobody"], "nobody"),
        (["hearts@candidate", "--ignore", "2"], "ignore"),
        (["hearts@candidate", "--device", "abacus"], "'abacus' is not a device"),
        (["hearts@candidate", "--decision", "maybe"], "decisions"),
    ],
)
def test_a_bad_command_is_one_line(
    site: Published, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", *given, "--workspace", str(site.workspace)])
    assert ended.value.code == BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_command_says_what_it_did(site: Published, trained: StudentResult, tmp_path: Path) -> None:
    config = tmp_path / "student.yaml"
    config.write_text(json.dumps({"training": TRAINING, "device": "cpu"}))
    command = [sys.executable, "-m", "flows.cli", "train", "hearts@candidate", "--workspace", str(site.workspace)]
    done = subprocess.run([*command, "--config", str(config)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"student {trained.student}, data set hearts/1" in done.stdout
    assert "(trained before)" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_goes_away_takes_no_student_with_it(
    site: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "student.yaml"
    config.write_text(json.dumps({"training": TRAINING, "device": "cpu", "seed": 7}))
    command = ["train", "hearts@candidate", "--workspace", str(site.workspace), "--config", str(config)]
    with dying_server(tmp_path / "home", "train", monkeypatch) as killed, pytest.raises(SystemExit) as ended:
        main(command)
    assert killed()
    assert not ended.value.code
    assert "data set hearts/1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("network", ["unet", "swin-unetr", "segformer"])
def test_every_network_learns_by_command_and_survives_being_killed(network: str, tmp_path: Path) -> None:
    site = publish_dataset(tmp_path, learnable=True)
    label_experts(site, learnable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_dataset(record_of(site), Files(site.workspace))
    config = tmp_path / "student.yaml"
    training = {"width": 8, "steps": 48, "round_steps": 8, "batch_size": 8, "image_size": 32}
    rate = {"learning_rate": 2e-3 if network == "unet" else 1e-3}
    config.write_text(json.dumps({"training": training | rate, "device": "cpu"}))
    command = [sys.executable, "-m", "flows.cli", "train", "hearts@candidate", "--workspace", str(site.workspace)]
    command += ["--config", str(config), "--network", network, "--no-compare", "--out"]
    killed = subprocess.Popen([*command, str(tmp_path / "a")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (found := list((tmp_path / "a").glob("hearts/*/checkpoint.safetensors"))):
        assert killed.poll() is None, killed.stdout.read().decode()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert not (found[0].parent / "student.json").exists()
    for folder in ("a", "b"):
        done = subprocess.run([*command, str(tmp_path / folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    resumed, undisturbed = (
        StudentResult.model_validate_json(next((tmp_path / folder).glob("hearts/*/student.json")).read_text())
        for folder in ("a", "b")
    )
    assert resumed.weights == undisturbed.weights
    assert undisturbed.test_dice["mean"].mean > 0
    registry = DataRegistry(f"sqlite:///{site.workspace / 'mlflow.db'}")
    losses = [registry.client.get_metric_history(one.mlflow_run_id, "loss") for one in (resumed, undisturbed)]
    assert [one.step for one in losses[0]][-1] == losses[1][-1].step
    # In 48 steps: alone on the experts' slices the U-Net and SegFormer lost 42 % of it.
    assert losses[1][-1].value < 0.85 * losses[1][0].value
